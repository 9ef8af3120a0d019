"""Names for the things that DMI speaks of. A node is known by its public key; people call it by its name."""

import hashlib
from typing import NewType

NodeId = NewType("NodeId", str)
"""Sixteen hexadecimal digits made of the node's public key; see :func:`node_id`."""

PublicKey = NewType("PublicKey", str)
"""A CURVE public key in z85, 40 characters."""

JobId = NewType("JobId", str)
"""What a user types to speak of a job: its name and six hexadecimal digits, ``digits-3f2a91``."""

RequestId = NewType("RequestId", str)
"""Made by the client, so that asking twice does a thing once."""

BlobHash = NewType("BlobHash", str)
"""The SHA-256 of a file's bytes, 64 hexadecimal digits."""


_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES = {character: value for value, character in enumerate(_Z85)}
_KEY_CHARACTERS = 40
_GROUP = 5


def is_public_key(text: str) -> bool:
    """Is it 32 bytes in z85? Sockets take no other key (ZeroMQ RFC 32: five characters stand for four bytes)."""
    if len(text) != _KEY_CHARACTERS or not _VALUES.keys() >= set(text):
        return False
    groups = (text[start : start + _GROUP] for start in range(0, _KEY_CHARACTERS, _GROUP))
    return all(sum(_VALUES[c] * 85**place for place, c in enumerate(reversed(group))) < 1 << 32 for group in groups)


def node_id(public_key: PublicKey) -> NodeId:
    """The node whose CURVE key is ``public_key``."""
    return NodeId(hashlib.sha256(public_key.encode("ascii")).hexdigest()[:16])


def job_id(name: str, request: RequestId) -> JobId:
    """The job that ``request`` submitted: a function of the request, so that a repeated request names the same job."""
    return JobId(f"{name}-{hashlib.sha256(request.encode()).hexdigest()[:6]}")
