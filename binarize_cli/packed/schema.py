"""What the document of a packed file may say: one strict model, for writing and for reading; no torch.

A packed file comes from a stranger: every size has a bound, every number is finite, and no key is unknown.
docs/format.md explains each field.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from binarize_cli.packed.recipe_defaults import RECIPE_DEFAULTS, resolved

FORMAT = 2
Overflow = Literal["saturate", "wrap"]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds control characters")
    return text


def _depth(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def _small(tree: dict) -> dict:
    """Return a mapping of JSON values, no deeper than a recipe, with sections where a recipe has them."""
    for key, usual in RECIPE_DEFAULTS.items():
        if isinstance(usual, dict) and not isinstance(tree.get(key, {}), dict):
            raise ValueError(f"{key} is not a section")
    if _depth(tree) > 5:
        raise ValueError("is nested too deep for a recipe")
    _check_finite(tree)
    return tree


def _check_finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("holds a number that is not finite")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_finite(each)


Side = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, Field(ge=0, le=2**60)]
Percent = Annotated[float, Field(ge=0, le=100)]
Text = Annotated[str, StringConstraints(max_length=4096)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
Name = Annotated[str, StringConstraints(max_length=300), AfterValidator(_printable)]
Shape = Annotated[list[Annotated[int, Field(ge=1, le=2**40)]], Field(max_length=8)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}$")]


class Part(BaseModel):
    """A JSON object in which every key is known and every value has its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class BuilderKwargs(Part):
    """The keywords that a packed file may hand to the builder of its model: the image size, nothing else."""

    img_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    image_size: Side | None = None


class Model(Part):
    """Which architecture, by its name in its library, and the classes that its logits stand for."""

    source: Literal["timm", "torchvision", "caller"]
    """caller: a network that no model library knows; whoever loads the file brings it."""
    name: ModelName
    classes: Annotated[list[Text], Field(min_length=1, max_length=2**20)]
    kwargs: BuilderKwargs = BuilderKwargs()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def builder_kwargs(self) -> dict[str, Any]:
        return self.kwargs.model_dump(exclude_none=True)


class InputTransform(Part):
    """From an image to the network's input, in timm's words."""

    input_size: Annotated[list[Side], Field(min_length=3, max_length=3)]
    """Channels, height, width."""
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    mean: Annotated[list[Annotated[float, Field(ge=-1e4, le=1e4)]], Field(min_length=1, max_length=4096)]
    std: Annotated[list[Annotated[float, Field(ge=1e-6, le=1e4)]], Field(min_length=1, max_length=4096)]
    crop_pct: Annotated[float, Field(ge=0.05, le=4)]
    crop_mode: Literal["center", "squash", "border"]

    @model_validator(mode="after")
    def _one_a_channel(self) -> InputTransform:
        channels = self.input_size[0]
        if not {len(self.mean), len(self.std)} <= {1, channels}:
            raise ValueError(f"mean and std need one number for each of the {channels} channels")
        return self


class BinaryInputs(Part):
    """How the inputs of binary layers become signs, where they do (tasks bwa and bwaa)."""

    threshold: Literal["learned", "none"]
    """learned: the file holds one a channel for every binary input."""
    padding: Literal["zero", "plus", "minus"]
    blocks: Literal["bi-real", "keep"]
    attention: Literal["float", "binary"]
    overflow: Overflow | None = None
    """Task bwaa: what happens at the ends of the int8 accumulator."""
    tiles: Literal["pixel", "channel"] = "pixel"
    """Task bwaa: the order of a convolution's products; channel is that of format 1."""


class Row(Part):
    """A linear or convolution layer, or a binary matmul of attention: what it is and what became of it."""

    name: Word
    kind: Word = "linear"
    shape: (
        Annotated[list[Annotated[int, Field(ge=1, le=2**40)]], Field(min_length=2, max_length=4)] | None
    ) = None
    """Of the weights, where these are bits; left out of a layer that stays float, and of a matmul."""
    input: Literal["sign", "one-sided"] | None = None
    """Where the inputs (both factors of a matmul) are signs; one-sided: in calibration of one sign mostly."""
    shift: Annotated[int, Field(ge=0, le=8)] | None = None
    """Task bwaa: bits that a tile's sum loses before it is added."""
    overflowed: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Task bwaa: the share of sums that overflowed when the network was scored."""
    why: Word = "default"
    macs: Count = 0
    """Multiplications for one image."""

    @property
    def is_matmul(self) -> bool:
        return self.shape is None and self.input is not None

    @property
    def binary(self) -> bool:
        return self.shape is not None or self.input is not None

    @field_validator("shape")
    @classmethod
    def _of_a_layer(cls, shape: list[int] | None) -> list[int] | None:
        if shape and (len(shape) == 3 or math.prod(shape) > 2**40):
            raise ValueError("is neither that of a linear layer nor that of a convolution")
        return shape


class Score(Part):
    """What the file scored on its validation images."""

    top1: Percent
    top5: Percent
    loss: Annotated[float, Field(ge=0)]
    images: Annotated[int, Field(ge=1, le=2**40)]


class Data(Part):
    """The dataset of the run: a name that --dataset takes, a folder, or both."""

    dataset: Text | None = None
    data_dir: Text | None = None
    fingerprint: Sha256

    @property
    def name(self) -> str:
        return self.dataset or self.data_dir or "?"


class Provenance(Part):
    """What made the numbers: versions, device, precision, steps of training, and the float weights."""

    bnnpp: Word
    torch: Word
    torchvision: Word
    timm: Word
    python: Word
    device: Word
    precision: Word
    steps: Count
    weights: Text
    weights_sha256: Sha256 | None = None


class Joined(Part):
    """Modules that hold small tensors of the same names, types and shapes: see `joined`."""

    modules: Annotated[list[Name], Field(min_length=1, max_length=2**20)]
    tensors: dict[Literal["F16", "F32", "I8", "I32", "I64", "U8", "BOOL"], dict[Name, Shape]]
    """Type -> the tensor's name in its module -> its shape."""


class Document(Part):
    """The JSON document of a packed file."""

    format: Literal[2]
    sha256: Sha256 = "0" * 64
    """Of the document and the tensors: see `format.checksum`."""
    model: Model
    preprocessing: InputTransform | None = None
    """Left out only where the model is the caller's."""
    method: Word
    task: Literal["bw", "bwa", "bwaa"]
    inputs: BinaryInputs | None = None
    layers: Annotated[list[Row], Field(min_length=1, max_length=100_000)]
    recipe: Annotated[dict[str, Any], AfterValidator(_small)] = {}
    """What of the resolved recipe differs from `recipe_defaults`."""
    joined: list[Joined] = []
    """The small tensors, which lie one after another: what each is, in their order."""
    accuracy: Score | None = None
    data: Data | None = None
    """Left out only where the model is the caller's."""
    provenance: Provenance

    @property
    def full_recipe(self) -> dict[str, Any]:
        """The resolved recipe of the run."""
        return resolved(self.recipe, self.method, self.task)

    def scored(self, accuracy: dict[str, Any]) -> Document:
        """Return the same document with what the file scored: the fields of `Score`."""
        return self.model_copy(update={"accuracy": Score(**accuracy)})

    @model_validator(mode="after")
    def _whole(self) -> Document:
        if self.model.source != "caller" and (self.preprocessing is None or self.data is None):
            raise ValueError("preprocessing and data: must be there, unless the model is the caller's")
        names = [row.name for row in self.layers]
        if len(set(names)) < len(names):
            raise ValueError("layers: two rows have one name")
        any_input = any(row.input for row in self.layers)
        if any_input != (self.inputs is not None) or (any_input and self.task == "bw"):
            raise ValueError("inputs: must be there where rows have binary inputs (not in task bw)")
        sums = self.task == "bwaa" and any_input
        if self.inputs and sums != (self.inputs.overflow is not None):
            raise ValueError("inputs.overflow: must be there in task bwaa, and only there")
        for row in self.layers:
            if (row.shift is not None) != (sums and row.input is not None):
                raise ValueError(f"layers: {row.name}: shift belongs to rows with binary inputs in task bwaa")
            if self.inputs and row.binary and row.input is None:
                raise ValueError(f"layers: {row.name}: its weights are bits, but its input is not signs")
            if row.is_matmul and self.inputs and self.inputs.attention == "float":
                raise ValueError(f"layers: {row.name}: a binary matmul, but inputs.attention is float")
        return self
