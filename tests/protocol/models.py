"""A version of a model, for tests to which it does not matter what it computes."""

from dmi_protocol.cluster.command import AddModel, BatchSpec, CutModel, DeploymentSpec
from dmi_protocol.identity import BlobHash, NodeId, RequestId
from dmi_protocol.model import ModelContent, ModelFile, ModelRef, ModelStage, TensorInfo

WEIGHTS = BlobHash("e" * 64)


def content(blob: BlobHash = WEIGHTS) -> ModelContent:
    """One file, and a batch of four numbers."""
    x, y = TensorInfo("x", "float32", (None, 4)), TensorInfo("output_0", "float32", (None, 3))
    return ModelContent("exported", (ModelFile("model", blob, 7),), (x,), (y,))


def cutting(stages: int, *holders: NodeId, version: str = "m:1", blob: BlobHash = WEIGHTS, most: int = 7) -> CutModel:
    """That model is cut; each stage has a file of its own beside the one that all have."""
    graph = ModelFile("graph", BlobHash("f" * 64), 1)
    made = tuple(
        ModelStage((graph, ModelFile("weights", BlobHash(f"{blob[0]}{stages}{n}".ljust(64, "0")), 3)), n, n + 1, most)
        for n in range(stages)
    )
    return CutModel(
        RequestId(f"cut-{version}-{blob[0]}-{stages}-{most}-{len(holders)}"),
        version,
        content(blob).digest,
        made,
        holders,
    )


def adding(name: str, *holders: NodeId, blob: BlobHash = WEIGHTS, request: str = "") -> AddModel:
    """It is on these nodes."""
    return AddModel(RequestId(request or f"add-{name}"), name, content(blob), holders, 1)


def batch(
    inputs: int = 10,
    slice_inputs: int = 4,
    *,
    model: str = "m:1",
    replicas: int | None = None,
    per_node: int = 1,
    blob: BlobHash = WEIGHTS,
    name: str = "b",
) -> BatchSpec:
    """A batch inference with such a model."""
    return BatchSpec(name, ModelRef(model, content(blob)), inputs, slice_inputs, replicas, per_node)


def deployment(
    name: str = "m",
    *,
    model: str = "m:1",
    replicas: int | None = None,
    gateways: int | None = None,
    max_batch: int = 32,
) -> DeploymentSpec:
    """Such a model, served."""
    return DeploymentSpec(name, ModelRef(model, content()), replicas, gateways, max_batch)
