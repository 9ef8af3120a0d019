"""The verbs of tokens. A token is shown once, and nobody keeps more of it than its digest."""

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from dmi_node import clock
from dmi_node.control import checks
from dmi_node.control.server import Client, RefusalError, Verb
from dmi_protocol.cluster.command import AddToken, Command, RemoveToken
from dmi_protocol.cluster.state import ClusterState

_PREFIX = "dmi_"
_BYTES = 32


class TokenVerbs:
    """``ask`` has a command agreed, and raises ``RefusalError`` when it is not."""

    def __init__(self, state: Callable[[], ClusterState], ask: Callable[[Command], Awaitable[str]]) -> None:
        self._state = state
        self._ask = ask

    def table(self) -> dict[str, Verb]:
        """Every verb by its name."""
        return {"tokens": self.tokens, "token-add": self.add, "token-rm": self.remove}

    async def tokens(self, client: Client, args: dict[str, Any]) -> object:
        """What is known of each."""
        return [
            {"name": name, "scope": token.scope, "added_unix": token.added_unix}
            for name, token in sorted(self._state().tokens.items())
        ]

    async def add(self, client: Client, args: dict[str, Any]) -> object:
        """Make one; gives it."""
        request, name, scope = checks.request(args["request"]), str(args["name"]), args["scope"]
        if scope != "infer":
            raise RefusalError("usage", f"there is the scope infer, and no {str(scope)[:40]!r}")
        token = _PREFIX + secrets.token_urlsafe(_BYTES)
        digest = hashlib.sha256(token.encode()).hexdigest()
        await self._ask(AddToken(request, name, digest, "infer", clock.unix()))
        return {"name": name, "scope": scope, "token": token}

    async def remove(self, client: Client, args: dict[str, Any]) -> object:
        """It lets nobody in any more."""
        await self._ask(RemoveToken(checks.request(args["request"]), str(args["name"])))
        return {"removed": str(args["name"])}
