"""Which versions of the model a gateway offers, and which of them a request may be computed by."""

from random import Random
from typing import NamedTuple

from dmi_node.gateway.contract import Contract
from dmi_node.gateway.http import HttpError
from dmi_protocol import limits
from dmi_protocol.messages.roles import Versions
from dmi_protocol.model import ModelRef


class Choice(NamedTuple):
    """The versions that may compute a request, the first rather than the others; all of them take and give the same."""

    versions: tuple[str, ...]
    contract: Contract


class Offer:
    """Of the model ``name``. Replicas change their version one by one: meanwhile the one before is as good, where it takes and
    gives the same."""

    def __init__(self, ref: ModelRef, random: Random) -> None:
        self.name = ref.id.partition(":")[0]
        self.versions = Versions(ref)
        self._random = random
        self._refs = {ref.id: ref}
        """Those of now, and some that were offered before; the newest last."""
        self._contracts = {ref.id: Contract(ref.content)}

    @property
    def current(self) -> ModelRef:
        """What is computed with where nobody says otherwise."""
        return self.versions.current

    @property
    def contract(self) -> Contract:
        """Of the current version."""
        return self._contracts[self.current.id]

    def told(self, versions: Versions) -> None:
        """These are offered from now on."""
        self.versions = versions
        for ref in reversed(versions.all):
            self._refs.pop(ref.id, None)
            self._refs[ref.id] = ref
            self._contracts.setdefault(ref.id, Contract(ref.content))
        while len(self._refs) > limits.VERSIONS_REMEMBERED:
            gone = next(iter(self._refs))
            del self._refs[gone], self._contracts[gone]

    def ref(self, number: str | None) -> ModelRef:
        """One that is offered: by its number, or the current one. Raises ``HttpError``."""
        if number is None:
            return self.current
        found = next((ref for ref in self.versions.all if ref.id == f"{self.name}:{number}"), None)
        if found is None:
            served = " and ".join(ref.id.rpartition(":")[2] for ref in self.versions.all)
            raise HttpError(404, f"{self.name!r} is served in version {served}, and not in {number[:40]!r}")
        return found

    def choose(self, number: str | None, there: frozenset[str]) -> Choice:
        """For a request that wants this version, or does not say. ``there`` are the versions that somebody has in memory."""
        if number is not None:
            ref = self.ref(number)
            return Choice((ref.id,), self._contracts[ref.id])
        canary = self.versions.canary
        if canary is not None and canary.id in there and self._random.random() * 100 < self.versions.share:
            return Choice((canary.id,), self._contracts[canary.id])
        others = [v for v in reversed(self._refs) if canary is None or v != canary.id]
        order = [self.current.id, *[version for version in others if version != self.current.id]]
        first = next((version for version in order if version in there), order[0])
        alike = [version for version in order if self._contracts[version] == self._contracts[first]]
        return Choice(tuple(alike), self._contracts[first])
