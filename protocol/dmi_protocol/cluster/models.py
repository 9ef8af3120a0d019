"""Versions of models in the replicated state, and what commands do to them."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.cluster.command import AddModel, CutModel, RemoveModel
from dmi_protocol.identity import BlobHash, JobId, NodeId
from dmi_protocol.model import ModelContent, ModelFile, ModelStage
from dmi_protocol.reasons import LimitReached, Malformed, ModelInUse, Reason, UnknownModel

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ModelVersion(Struct):
    """It never changes, but for who has its files, and how it was cut. ``id`` is ``name:number``."""

    name: str
    number: int
    content: ModelContent
    digest: str
    added_unix: int
    nodes: dict[BlobHash, tuple[NodeId, ...]]
    """By file: who has it."""
    cuts: dict[int, tuple[ModelStage, ...]] = field(default_factory=dict)
    """By how many stages they have; their files are among those of ``nodes``."""
    origin: JobId | None = None
    """The training that published it, and did so last."""
    copies: dict[BlobHash, NodeId] = field(default_factory=dict)
    asked: dict[BlobHash, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """What jobs name it by."""
        return f"{self.name}:{self.number}"

    def is_known_as(self, content: ModelContent) -> bool:
        """Is this what it is made of, in one piece or as it was once cut?"""
        return replace(content, stages=()) == self.content and all(file.blob in self.nodes for file in content.needed)

    def is_had(self, files: Iterable[ModelFile], members: Container[NodeId]) -> bool:
        """Can ``members`` give all of these, which are its own or those of its stages?"""
        return all(any(node in members for node in self.nodes.get(file.blob, ())) for file in files)

    def in_stages(self, most_bytes: int) -> ModelContent | None:
        """Cut into as few stages as there are cuts for, none with more than so many bytes of weights in memory."""
        able = [cut for cut in self.cuts.values() if max(stage.weight_bytes for stage in cut) <= most_bytes]
        return replace(self.content, stages=min(able, key=len)) if able else None

    def kept(self) -> Iterator[tuple[BlobHash, tuple[NodeId, ...]]]:
        """See ``Holding``."""
        yield from self.nodes.items()

    def blobs(self) -> dict[BlobHash, tuple[NodeId, ...]]:
        """See ``Holding``: all of it, for as long as it is there."""
        return self.nodes

    def hold(self, blob: BlobHash, node: NodeId) -> None:
        """See ``Holding``."""
        if blob in self.nodes:
            self.nodes[blob] = tuple(dict.fromkeys((*self.nodes[blob], node)))


Models = dict[str, dict[int, ModelVersion]]


def is_model_name(name: str) -> bool:
    """Letters, digits, dots, dashes and underscores: it stands in addresses and file names."""
    return _NAME.fullmatch(name) is not None and len(name) <= limits.NAME_CHARACTERS


def find(models: Models, name: str) -> ModelVersion | None:
    """By ``name:number``, or the newest of ``name``."""
    known, _, number = name.partition(":")
    versions = models.get(known, {})
    if number:
        return versions.get(int(number)) if number.isascii() and number.isdigit() else None
    return versions[max(versions)] if versions else None


def add(models: Models, command: AddModel, origin: JobId | None = None) -> tuple[str, Reason | None]:
    """Gives the version's id. The same content is the same version, and what is said of its files is added to what is known."""
    content = command.content
    if not is_model_name(command.name):
        return "", Malformed("model name (letters, digits, '.', '-' and '_')", command.name)
    names = [file.name for file in content.files]
    if not 0 < len(names) <= limits.MODEL_FILES or len(set(names)) < len(names) or not command.holders:
        return "", Malformed("model", command.name)
    if min(file.size_bytes for file in content.files) < 0 or content.stages:
        return "", Malformed("model", command.name)
    versions = models.get(command.name, {})
    digest = content.digest
    known = next((version for version in versions.values() if version.digest == digest), None)
    if known is None and sum(map(len, models.values())) >= limits.MODEL_VERSIONS:
        return "", LimitReached("versions of models; `dmi-node models rm` removes some", limits.MODEL_VERSIONS)
    if known is None:
        number = 1 + max(versions, default=0)
        nodes = {file.blob: command.holders for file in content.files}
        known = ModelVersion(command.name, number, content, digest, command.at_unix, nodes)
        models[command.name] = versions | {number: known}
    known.origin = origin or known.origin
    for file in content.files:
        for node in command.holders:
            known.hold(file.blob, node)
    return known.id, None


def cut(models: Models, command: CutModel) -> tuple[str, Reason | None]:
    """Gives how many stages there are. Of two cuts into as many the one stays whose largest stage is smaller."""
    version, stages = find(models, command.version), command.stages
    if version is None or version.id != command.version or version.digest != command.digest:
        return "", UnknownModel(command.version)
    are_whole = all(stage.files and stage.weight_bytes >= 0 for stage in stages)
    if not 1 < len(stages) <= limits.MODEL_STAGES or not are_whole or not command.holders:
        return "", Malformed("stages of a model", command.version)
    known = version.cuts.get(len(stages))
    if known is None and len(version.cuts) >= limits.MODEL_CUTS:
        return "", LimitReached(f"ways to cut {version.id}", limits.MODEL_CUTS)
    if known is None or _largest(stages) < _largest(known):
        version.cuts = version.cuts | {len(stages): stages}
    for file in (file for stage in stages for file in stage.files):
        version.nodes.setdefault(file.blob, ())
        for node in command.holders:
            version.hold(file.blob, node)
    return str(len(stages)), None


def _largest(stages: Sequence[ModelStage]) -> int:
    return max(stage.weight_bytes for stage in stages)


def prune(models: Models, name: str, origin: JobId, used: Mapping[str, str]) -> None:
    """Of what a training published under this name the last ones stay, and what is used."""
    mine = [n for n, version in sorted(models[name].items()) if version.origin == origin]
    for number in mine[: -limits.VERSIONS_REMEMBERED]:
        if models[name][number].id not in used:
            del models[name][number]


def remove(models: Models, command: RemoveModel, used: Mapping[str, str]) -> Reason | None:
    """One version, or all of them. ``used`` gives the job that uses a version, by its id."""
    versions = models.get(command.name, {})
    gone = [n for n in versions if command.number is None or n == command.number]
    if not gone:
        return UnknownModel(command.name if command.number is None else f"{command.name}:{command.number}")
    for number in gone:
        if versions[number].id in used:
            return ModelInUse(versions[number].id, used[versions[number].id])
    left = {number: version for number, version in versions.items() if number not in gone}
    if left:
        models[command.name] = left
    else:
        del models[command.name]
    return None
