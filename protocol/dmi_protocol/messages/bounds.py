"""Numbers that cross the wire are bounded, so that whoever takes them in can store them and count on."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=2**62)]
"""A term, an index, an incarnation, a sequence number: never negative, and far below what a database can hold."""
