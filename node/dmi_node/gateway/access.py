"""Who may ask a gateway: everybody on loopback, and elsewhere who shows a token."""

import hashlib
import hmac
import ipaddress

from dmi_node.gateway.http import HttpError, Request
from dmi_protocol.messages.roles import Access

_BEARER = b"bearer "


def is_open(host: str) -> bool:
    """Can only this host reach the address? A name that is no address may be anything."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def demand_token(request: Request, access: Access) -> None:
    """Raises ``HttpError`` unless the request has one of the tokens. Its time says nothing of how much is right."""
    said = request.headers.get(b"authorization", b"")
    if said[: len(_BEARER)].lower() != _BEARER:
        raise HttpError(401, "Authorization: a token is wanted, as Bearer TOKEN; `dmi-node token add` makes one")
    digest = hashlib.sha256(said[len(_BEARER) :].strip()).hexdigest()
    matches = [hmac.compare_digest(digest, known) for known in access.digests]
    if not any(matches):
        raise HttpError(401, "Authorization: the token is not known here, or was taken back")
