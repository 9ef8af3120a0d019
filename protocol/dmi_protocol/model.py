"""Models as everybody agrees to know them: what a version is made of, and what goes in and comes out."""

import hashlib
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from dmi_protocol.codec import pack
from dmi_protocol.identity import BlobHash

Format = Literal["torchscript", "exported", "factory"]
"""A TorchScript file; a file of ``torch.export.save``; a function that makes the module, and its weights as safetensors."""


class TensorInfo(Struct, frozen=True):
    """An input or an output. ``dtype`` is torch's word (``float32``); a dimension of ``shape`` is None where any size may be
    given. ``is_batched`` says that the first dimension counts inputs."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    is_batched: bool = True


class ModelFile(Struct, frozen=True):
    """One file of a version. ``name`` says what it is to the format (``model``, ``weights``, ``code``)."""

    name: str
    blob: BlobHash
    size_bytes: int


class ModelStage(Struct, frozen=True):
    """A part of a model that is cut: what its graph computes from operation ``first`` on and before ``last``. Its files are the
    ``graph``, which is that of all stages, and ``weights``, which are its own."""

    files: tuple[ModelFile, ...]
    first: int
    last: int
    weight_bytes: int
    """Of the tensors that it holds in memory."""


class ModelContent(Struct, frozen=True):
    """All that a version is. ``factory`` is ``module:function``, whose module is in the file ``code`` when it travelled.
    ``stages`` are there where it is computed by several processes, each with a part of it."""

    format: Format
    files: tuple[ModelFile, ...]
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    factory: str = ""
    stages: tuple[ModelStage, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of what it is made of: the same bytes are the same version, whatever was found out about them."""
        made_of = (self.format, self.factory, sorted((file.name, file.blob) for file in self.files))
        return hashlib.sha256(pack(made_of)).hexdigest()

    @property
    def without_weights(self) -> "ModelContent":
        """What all versions have in common that were made by one training."""
        return replace(self, files=tuple(file for file in self.files if file.name != "weights"), stages=())

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)

    def files_of(self, stage: int) -> tuple[ModelFile, ...]:
        """What a process needs that computes this stage; all files where it is in one piece."""
        return self.stages[stage].files if self.stages else self.files

    @property
    def needed(self) -> tuple[ModelFile, ...]:
        """All that computing it takes: its files, or those of its stages."""
        return tuple(dict.fromkeys(file for stage in self.stages for file in stage.files)) or self.files

    def held_bytes(self, stage: int) -> int:
        """About what it has in memory then."""
        return self.stages[stage].weight_bytes if self.stages else self.size_bytes


class ModelRef(Struct, frozen=True):
    """A version that something uses: its id (``digits:3``), and what it is made of."""

    id: str
    content: ModelContent
