"""What a client may ask for: bounded here, because it goes into the state of every node. All raise ``RefusalError``."""

import re
from pathlib import PurePosixPath

from dmi_node.control.server import RefusalError
from dmi_node.storage.blobs import is_hash
from dmi_protocol import limits, reasons
from dmi_protocol.capacity import Capacity
from dmi_protocol.cluster.command import BatchSpec, DeploymentSpec, JobSpec, SharingSpec, Spec, TrainingSpec
from dmi_protocol.cluster.models import ModelVersion, find
from dmi_protocol.cluster.state import ClusterState
from dmi_protocol.codec import convert
from dmi_protocol.identity import BlobHash, RequestId
from dmi_protocol.kinds.deployment.state import DeploymentJob
from dmi_protocol.kinds.job import ENDED
from dmi_protocol.kinds.training.placing import wanted_nodes
from dmi_protocol.model import ModelContent, ModelRef, ModelStage
from dmi_protocol.sentences import sentence
from dmi_protocol.serving.datatypes import unspeakable

_REQUEST_CHARACTERS = 128
_SCRIPT_CHARACTERS = 4_096
_ARGUMENT_BYTES = 64 * 1024
"""All arguments of a script together."""
_LOGS = 65_536
_THREADS = 1_024
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EVERY = 1_000_000
_INVITATION_S = 366 * 24 * 3600
_GATEWAY_PORTS = range(8_100, 65_536)


def request(value: object) -> RequestId:
    """The id that a client gave to its request."""
    if not isinstance(value, str) or not 0 < len(value) <= _REQUEST_CHARACTERS:
        raise RefusalError("usage", f"a request's id has 1 to {_REQUEST_CHARACTERS} characters")
    return RequestId(value)


def offsets(value: object) -> dict[str, int]:
    """How far a client has read each log of a job."""
    found: dict[str, int] = convert(value, dict[str, int])
    if len(found) > _LOGS:
        raise RefusalError("usage", f"a job has at most {_LOGS} logs to go on in")
    return found


def bundle(name: object, size: object) -> tuple[BlobHash, int]:
    """The hash of a bundle, and its size in bytes."""
    if not isinstance(name, str) or not is_hash(name):
        raise RefusalError("usage", f"{str(name)[:80]!r} is no SHA-256")
    if not isinstance(size, int) or not size > 0:
        raise RefusalError("usage", "a bundle has at least one byte")
    if size > limits.BUNDLE_BYTES:
        raise RefusalError(
            "refused", f"the job's files are {size} bytes, more than {limits.BUNDLE_BYTES}; include fewer"
        )
    return BlobHash(name), size


def spec(value: object, state: ClusterState) -> Spec:
    """A job for this mesh. Of a batch inference the client names the model, and the node says what it is made of."""
    if isinstance(value, dict) and value.get("kind") == "batch":
        name = str(value.get("model"))
        version = find(state.models, name)
        if version is None:
            raise RefusalError("unknown", sentence(reasons.UnknownModel(name[:80])))
        model = ModelRef(version.id, _held(version, value.get("memory_per_replica")))
        return _batch(convert(value | {"model": model}, BatchSpec), state)
    if isinstance(value, dict) and value.get("kind") == "deployment":
        raise RefusalError("usage", "a deployment is served, and not submitted")
    found: TrainingSpec = convert(value, TrainingSpec)
    _check_name(found)
    if not 0 < len(found.script) <= _SCRIPT_CHARACTERS:
        raise RefusalError("usage", f"a script's name has 1 to {_SCRIPT_CHARACTERS} characters")
    _check_environment(found)
    if len(found.args) > limits.ARGUMENTS or sum(len(arg.encode()) for arg in found.args) > _ARGUMENT_BYTES:
        raise RefusalError(
            "usage",
            f"a script takes at most {limits.ARGUMENTS} arguments of {_ARGUMENT_BYTES} bytes together; --include a file",
        )
    _check_numbers(found, len(_playing(state)))
    _check_share(found, state, wanted_nodes(found))
    return found


def _playing(state: ClusterState) -> list[Capacity]:
    """Of those who may play a role, what each has."""
    return [member.capacity for member in state.members.values() if not member.witness]


def _check_share(found: SharingSpec, state: ClusterState, wanted: int, *, once_each: bool = True) -> None:
    """What could never be promised is refused. ``wanted`` says how often the share is, ``once_each`` that this is on as many
    nodes."""
    for option, number, most in (("--cpus", found.cpus, _THREADS), ("--memory", found.memory, limits.MEMORY_BYTES)):
        if number is not None and not 1 <= number <= most:
            raise RefusalError("usage", f"{option} must be 1 to {most}, not {number}")
    if found.cpus is not None and found.threads > found.cpus:
        raise RefusalError(
            "usage", f"--threads {found.threads} is more than --cpus {found.cpus}: threads would wait for each other"
        )
    if not found.share:
        return
    sizes = _playing(state)
    able = sum(min(size.times(found.share), 1 if once_each else wanted) for size in sizes)
    if able < wanted:
        largest = max(((size.cpus, size.memory) for size in sizes), default=(0, 0))
        why = reasons.TooLittleRoom(wanted, able, found.share.cpus, found.share.memory, largest)
        raise RefusalError("refused", sentence(why))


def _check_name(found: JobSpec) -> None:
    if not 0 < len(found.name) <= limits.NAME_CHARACTERS or not found.name.isprintable():
        raise RefusalError("usage", f"--name takes 1 to {limits.NAME_CHARACTERS} printable characters")


def _batch(found: BatchSpec, state: ClusterState) -> BatchSpec:
    _check_name(found)
    nodes = len(_playing(state))
    if found.replicas is not None and not 1 <= found.replicas <= nodes:
        raise RefusalError("refused", sentence(reasons.TooFewNodes("replica", found.replicas, nodes)))
    _check_share(found, state, found.replicas or 1)
    return found


def deployment(value: object, state: ClusterState) -> DeploymentSpec:
    """A model that is to be served: the client names the model, and what it wants otherwise; the node says the rest. Where no
    port was wished it is the first one that no other deployment has."""
    said = dict(value) if isinstance(value, dict) else {}
    name = str(said.pop("model", None))
    version = find(state.models, name)
    if version is None:
        raise RefusalError("unknown", sentence(reasons.UnknownModel(name[:80])))
    if odd := unspeakable(version.content):
        raise RefusalError(
            "refused", f"{version.id} cannot be served: {odd}, for which the Open Inference Protocol has no word"
        )
    taken = {job.spec.port for job in state.jobs.values() if isinstance(job, DeploymentJob) and job.state not in ENDED}
    port = said.pop("port", None)
    if port is None:
        said |= {"port": next(port for port in _GATEWAY_PORTS if port not in taken), "may_move": True}
    else:
        said |= {"port": port, "may_move": False}
    model = ModelRef(version.id, _held(version, said.get("memory_per_replica")))
    found: DeploymentSpec = convert(said | {"kind": "deployment", "name": version.name, "model": model}, DeploymentSpec)
    if bool(found.certificate) != bool(found.certificate_key) or not all(
        not path or PurePosixPath(path).is_absolute() for path in (found.certificate, found.certificate_key)
    ):
        raise RefusalError("usage", "--cert and --key go together, and are absolute paths on every host with a gateway")
    if found.follow is not None and model.content.stages:
        raise RefusalError(
            "usage", "--follow is for models that a replica can hold: what a training publishes is not cut into stages"
        )
    if found.every is not None and (found.follow is None or model.content.format != "factory"):
        raise RefusalError(
            "usage",
            f"--every goes with --follow, and makes versions of checkpoints, so {version.id} must be made by a function: "
            "`dmi-node models add NAME --job JOB --model net.py:make` adds it so",
        )
    if found.most is not None and (found.replicas is not None or found.least > found.most):
        raise RefusalError(
            "usage", "--min and --max go with --replicas auto, and the first is not more than the second"
        )
    for option, number, least, most in (
        ("--replicas", found.replicas, 1, limits.DEPLOYED_REPLICAS),
        ("--min", found.least, 0 if found.most is not None else 1, limits.DEPLOYED_REPLICAS),
        ("--max", found.most, 1, limits.DEPLOYED_REPLICAS),
        ("--gateways", found.gateways, 1, limits.MEMBERS),
        ("--max-batch", found.max_batch, 1, limits.BATCH_ROWS),
        ("--max-wait-ms", found.max_wait_ms, 0, limits.REQUEST_MS),
        ("--port", found.port, 1, 65_535),
        ("--threads", found.threads, 1, _THREADS),
        ("--every", found.every, 1, _EVERY),
        ("--memory-per-replica", found.memory_per_replica, 1, limits.MODEL_BYTES),
    ):
        if number is not None and not least <= number <= most:
            raise RefusalError("usage", f"{option} must be {least} to {most}, not {number}")
    fewest = found.replicas or max(1, found.least)
    _check_share(found, state, fewest * max(1, len(model.content.stages)), once_each=False)
    return found


def _held(version: ModelVersion, most_bytes: object) -> ModelContent:
    """What the replicas compute with: the whole, or stages where it is larger than a replica may hold."""
    if most_bytes is None or not isinstance(most_bytes, int) or version.content.size_bytes <= most_bytes:
        return version.content
    found = version.in_stages(most_bytes)
    if found is None:
        raise RefusalError(
            "refused",
            f"{version.id} has {version.content.size_bytes:,} bytes and is not cut into stages of {most_bytes:,}: "
            "`dmi-node models cut` does that",
        )
    return found


def _check_environment(found: TrainingSpec) -> None:
    if len(found.env) > limits.ARGUMENTS or sum(len(n) + len(v.encode()) for n, v in found.env) > _ARGUMENT_BYTES:
        raise RefusalError("usage", f"--env takes {limits.ARGUMENTS} variables of {_ARGUMENT_BYTES} bytes together")
    for name, value in found.env:
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise RefusalError(
                "usage", f"--env {name[:80]!r} is no variable: letters, digits and '_', as in HF_HOME=/data"
            )
        if name.startswith("DMI_"):
            raise RefusalError("usage", f"--env {name}: variables that begin with DMI_ are DMI's own")
    if found.python is not None and not 0 < len(found.python) <= _SCRIPT_CHARACTERS:
        raise RefusalError("usage", f"--python takes a path of 1 to {_SCRIPT_CHARACTERS} characters")


def _check_numbers(found: TrainingSpec, nodes: int) -> None:
    leaves = found.leaves
    if leaves is not None and (leaves < 1 or leaves & (leaves - 1) or leaves > limits.LEAVES):
        raise RefusalError("usage", f"--leaves must be a power of two up to {limits.LEAVES}, not {leaves}")
    if not 1 <= found.threads <= _THREADS:
        raise RefusalError("usage", f"--threads must be 1 to {_THREADS}, not {found.threads}")
    backups = found.backups or 0
    if backups < 0:
        raise RefusalError("usage", f"--backups must be 0 or more, not {backups}")
    if backups >= nodes:
        raise RefusalError("refused", sentence(reasons.TooFewNodes("backup", backups, nodes)))
    for role, wanted in (("worker", found.workers), ("server", found.servers)):
        if wanted is not None and not 1 <= wanted <= nodes:
            raise RefusalError("refused", sentence(reasons.TooFewNodes(role, wanted, nodes)))


def packs(value: object, spec: Spec) -> dict[BlobHash, int]:
    """The sizes of the inputs that travel, which ``spec`` names."""
    sizes: dict[BlobHash, int] = convert(value, dict[BlobHash, int])
    if set(sizes) != set(spec.packs if isinstance(spec, BatchSpec) else ()):
        raise RefusalError("usage", "inputs that travel have a hash and a size each")
    for blob, size in sizes.items():
        if not is_hash(blob) or not 0 < size <= limits.MODEL_BYTES:
            raise RefusalError("usage", f"the inputs of a slice have a hash, and 1 to {limits.MODEL_BYTES} bytes")
    return sizes


def content(value: object) -> ModelContent:
    """What a version of a model is made of."""
    found: ModelContent = convert(value, ModelContent)
    for file in found.files:
        if not is_hash(file.blob) or not 0 < file.size_bytes <= limits.MODEL_BYTES:
            raise RefusalError("usage", f"a model's file has a hash, and 1 to {limits.MODEL_BYTES} bytes")
    infos = (*found.inputs, *found.outputs)
    if len(infos) > limits.MODEL_TENSORS or any(len(info.shape) > limits.DIMENSIONS for info in infos):
        raise RefusalError("usage", f"a model has at most {limits.MODEL_TENSORS} inputs and outputs")
    if max([len(found.factory), *(len(info.name) for info in infos)]) > _SCRIPT_CHARACTERS:
        raise RefusalError("usage", f"a name has at most {_SCRIPT_CHARACTERS} characters")
    return found


def stages(value: object) -> tuple[ModelStage, ...]:
    """Those that a version is cut into."""
    found: tuple[ModelStage, ...] = convert(value, tuple[ModelStage, ...])
    for file in (file for stage in found for file in stage.files):
        if not is_hash(file.blob) or not 0 < file.size_bytes <= limits.MODEL_BYTES:
            raise RefusalError("usage", f"a stage's file has a hash, and 1 to {limits.MODEL_BYTES} bytes")
    return found


def seconds(value: object) -> int:
    """How long an invitation is good for."""
    if not isinstance(value, int) or not 1 <= value <= _INVITATION_S:
        raise RefusalError("usage", f"an invitation is good for 1 to {_INVITATION_S} seconds, not {str(value)[:40]}")
    return value
