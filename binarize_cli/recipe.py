"""What a recipe is: its sections, their keys and defaults, and what a recipe means for the quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from binarize_cli.errors import InputError, did_you_mean
from binarize_cli.quantizers.method import Method
from binarize_cli.quantizers.methods import METHODS, find_method, with_parts
from binarize_cli.quantizers.scales import SCALES
from binarize_cli.quantizers.schedules import Schedule, Shape

Task = Literal["bw", "bwa", "bwaa"]
TASKS = get_args(Task)
if TYPE_CHECKING:
    ScaleName = str
else:
    ScaleName = Literal[tuple(SCALES)]  # a new entry there is known here
Share = Annotated[float, Field(ge=0, lt=1)]
Number = Annotated[float, Field(ge=-1e12, le=1e12)]  # what sums and powers of it can be computed of
Positive = Annotated[float, Field(gt=0, le=1e12)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Epochs = Annotated[int, Field(ge=0, le=100_000)]
Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]


class Misfit(ValueError):
    """A key of a section, dotted, that does not go with the rest of the recipe, and why."""

    def __init__(self, key: str, what: str):
        super().__init__(what)
        self.key = key


class Section(BaseModel):
    """A mapping in which every key is known and every value has its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Span(Section):
    """A schedule over training progress; in a recipe a bare number means that number throughout."""

    start: Number
    end: Number
    shape: Shape = "linear"

    @field_validator("shape")
    @classmethod
    def _positive(cls, shape: str, info: ValidationInfo) -> str:
        if shape == "log" and min(info.data.get("start", 1), info.data.get("end", 1)) <= 0:
            raise ValueError("a log schedule needs start > 0 and end > 0")
        return shape

    def schedule(self) -> Schedule:
        return Schedule(self.start, self.end, self.shape)


def _span(value: Any) -> Any:
    return {"start": value, "end": value} if isinstance(value, int | float) else value


class Quantizer(Section):
    """How latent weights become forward weights: alpha F(w* / n)."""

    scale: ScaleName = "channel"
    """alpha: mean |w*| of an output channel or of the layer, learned, or 1 (the literal paper form)."""
    normalize: Positive | Literal["none"] | None = None
    """n in multiples of mean |w*|, or `none` for n = 1. Unset: the method's own."""
    map: str | None = None
    """The proximal map P, for methods that have a choice of it (pq, rpc, pc++)."""
    transform: str | None = None
    """The transform T, for pc++: F = T o P and B = T' o P."""
    schedules: dict[str, Annotated[Span, BeforeValidator(_span)]] = {}
    """A parameter of the method (mu, rho ...): {start, end, shape: linear | log | sigmoid}, or one number.
    Unset: the method's own."""


class Activation(Section):
    """How the inputs of the binary layers become binary (tasks bwa and bwaa): beta F((x - t) / n)."""

    method: str | None = None
    """The method for inputs. Unset: that of the weights."""
    threshold: Literal["learned", "none"] = "learned"
    """t: one a channel, learned from the mean of the calibration images, or 0 (the literal paper form)."""
    scale: Literal["learned", "none"] = "learned"
    """beta: one a layer, learned from the calibration images, or 1."""
    normalize: Positive | Literal["none"] | None = None
    """n in multiples of beta, or `none` for n = 1. Unset: the method's own."""
    schedules: dict[str, Annotated[Span, BeforeValidator(_span)]] = {}
    """As in `quantizer`. Unset: those of the weights if the method is the same, else the method's own."""
    window: Positive | Literal["auto"] = "auto"
    """How far from t hardened inputs pass gradients on, in multiples of beta, if F was soft before.
    auto: 4.8 for convolutions, 2.4 for all else."""
    padding: Literal["zero", "plus", "minus"] = "zero"
    """What a convolution pads the signs of an image with: 0 (a third value), +1 or -1."""
    blocks: Literal["bi-real", "keep"] = "bi-real"
    """Whether residual blocks get a shortcut around every binary convolution, and RPReLU for ReLU."""
    attention: Literal["float", "binary"] = "float"
    """Whether the matrix products q k^T and p v of transformers take floats or signs."""

    @field_validator("method")
    @classmethod
    def _own_pair(cls, name: str | None) -> str | None:
        if name is None:
            return None
        method = METHODS[_known(name)]
        if name == "pc++":
            raise ValueError("pc++ takes its parts from `quantizer`; leave activation.method unset")
        if not (method.binary and method.trains):
            raise ValueError(f"{name} has no pair (F, B) to train with; leave activation.method unset")
        return name


class Accumulator(Section):
    """The int8 running sum of task bwaa: it takes tiles of 64 products and stays in -128 ... 127."""

    overflow: Literal["saturate", "wrap"] = "saturate"
    """What happens to a sum outside of -128 ... 127."""
    shift: Annotated[int, Field(ge=0, le=8)] | Literal["auto"] = "auto"
    """Low bits dropped from each tile's sum before it is added; auto: calibrated for each layer."""


class Layers(Section):
    """Which layers become binary. Entries are glob patterns of module names, or `first` and `head`."""

    keep_float: list[str] = ["first", "head"]
    """Layers that stay float."""
    make_binary: list[str] = []
    """Layers that become binary even if `keep_float` names them."""


class Preprocess(Section):
    """From an image to the network's input. Unset: as the model's own weights were trained."""

    mean: Annotated[list[float], Field(min_length=1)] | None = None
    """The mean of each channel, of values from 0 to 1, which is subtracted."""
    std: Annotated[list[Annotated[float, Field(ge=1e-6)]], Field(min_length=1)] | None = None
    """The standard deviation of each channel, by which the difference is divided."""
    interpolation: Interpolation | None = None
    """How images are resized."""
    crop_pct: Annotated[float, Field(ge=0.05, le=1)] | None = None
    """The share of the resized image's side that the test crop keeps."""


class Augment(Section):
    """Augmentation of the training images, by timm."""

    crop: Literal["auto", "rrc", "pad", "none"] = "auto"
    """Random resized crop, crop from a padded image, or the model's own test crop; auto: by image size."""
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.35, 1.0]
    """The least and largest share of the image's area that a random resized crop takes."""
    hflip: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """The chance that an image is mirrored; auto: 0 for digits, 0.5 for other data."""
    color_jitter: Weight = 0.0
    """How much brightness, contrast and saturation vary."""
    auto_augment: str | None = None
    """A policy as timm writes it, such as `rand-m9-mstd0.5`."""
    reprob: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The chance that a random rectangle of the image is erased."""


class Distill(Section):
    """A float model teaches: (1 - weight) cross-entropy + weight T^2 KL(teacher || student)."""

    teacher: str | None = None
    """Another model, trained on the same classes. Unset: the float model that becomes binary."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The teacher's share of the loss; 0 trains without one."""
    temperature: Annotated[float, Field(gt=0, le=1e6)] = 2.0
    """T, which divides the logits of both networks."""
    blocks: Weight = 0.0
    """The weight of a further term: the distance between the normalised outputs of each block."""


class Train(Section):
    """How the network is trained, in timm's words."""

    epochs: Epochs = 30
    """Epochs of fine-tuning with binary weights."""
    float_epochs: Epochs = 5
    """Epochs of float fine-tuning before that, if the head had to be replaced."""
    activation_epochs: Epochs = 0
    """Epochs with binary activations and float weights before both are binary (tasks bwa and bwaa)."""
    batch_size: Annotated[int, Field(ge=1, le=2**20)] = 64
    """Images of one step of the optimizer, over all ranks and micro-batches."""
    accumulate: Annotated[int, Field(ge=1, le=2**16)] = 1
    """Micro-batches that the images of a step are divided into, to save memory."""
    sync_batchnorm: bool = False
    """Whether BatchNorm takes its statistics over all ranks."""
    opt: str = "adamw"
    """The optimizer, by timm's name."""
    lr: Annotated[float, Field(gt=0, le=1e30)] = 5e-4
    """The peak learning rate, of what was float and stays so: norms, biases, the first layer, the head."""
    latent_lr: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """The learning rate of latent weights and all else that binarization adds (thresholds, scales, gains,
    RPReLU), in multiples of `lr`: the higher, the more signs flip."""
    lr_fan_in: Positive | None = None
    """The number of inputs up to which a layer that stays float learns by `lr`; one of more inputs learns by
    less, in inverse proportion. null: all learn by `lr`."""
    weight_decay: Weight = 0.0
    """Weight decay, on the latent weights too."""
    sched: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    min_lr: Weight = 1e-6
    """Where the learning rate ends."""
    warmup: Share = 0.05
    """The share of the steps over which the learning rate rises."""
    clip_grad: Positive | None = 1.0
    """The largest gradient norm; null for no clipping."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """The precision of training; auto: bfloat16 where the device computes it fast, else float32."""
    mixup: Weight = 0.0
    """The alpha of mixup; 0 for none."""
    cutmix: Weight = 0.0
    """The alpha of CutMix; 0 for none."""
    smoothing: Share = 0.0
    """Label smoothing."""
    ema: Share = 0.0
    """The decay of the moving average of the weights, which is what is scored and packed; 0 for none."""
    select: Literal["last", "held-out", "val"] = "last"
    """The epoch that is packed: the last, the best on images held out of training, or on those reported."""
    harden: Share = 0.1
    """The last share of the steps, in which F is sign."""
    harden_inputs: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The last share of the steps, in which F of binary inputs is sign, if that is more than `harden`."""
    reestimate_batchnorm: bool = True
    """Whether to re-estimate BatchNorm after hardening; kept if it helps on held-out images."""
    hold_out: Share = 0.05
    """The share of the training images (1,000 at most) that is held out to judge that."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The seed of everything random."""

    @property
    def inputs_hardened(self) -> float:
        """The last share of the steps, in which F of binary inputs is sign."""
        return max(self.harden, self.harden_inputs)


class Pack(Section):
    """The packed file."""

    float_dtype: Literal["float16", "float32", "int8"] = "float16"
    """The type of the tensors that stay float, with binary inputs only of large ones; int8: a scale a row."""


class Recipe(Section):
    """Everything a run depends on beside the model and the data."""

    description: str = ""
    """A line for `bnnpp recipes ls`."""
    method: str = "bnn++"
    """The method: see `bnnpp methods`."""
    task: Task = "bw"
    """What becomes binary: weights (bw), their inputs too (bwa), with int8 accumulators (bwaa)."""
    quantizer: Quantizer = Quantizer()
    activation: Activation = Activation()
    accumulator: Accumulator = Accumulator()
    layers: Layers = Layers()
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    distill: Distill = Distill()
    train: Train = Train()
    pack: Pack = Pack()

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        return _known(name)

    @field_validator("quantizer")
    @classmethod
    def _own_parameters(cls, quantizer: Quantizer, info: ValidationInfo) -> Quantizer:
        if info.data.get("method") not in METHODS:
            return quantizer
        method = METHODS[info.data["method"]]
        for key, parts in (("map", (quantizer.map, None)), ("transform", (None, quantizer.transform))):
            try:
                with_parts(method, *parts)
            except InputError as error:
                raise Misfit(key, f"{error.what}. {error.hint}") from None
        _check_schedules(with_parts(method, quantizer.map, quantizer.transform), quantizer.schedules)
        return quantizer

    @field_validator("activation")
    @classmethod
    def _activation_parameters(cls, activation: Activation, info: ValidationInfo) -> Activation:
        name, quantizer = activation.method or info.data.get("method"), info.data.get("quantizer")
        if not name or not quantizer:  # faulty, and told so
            return activation
        shared = (quantizer.map, quantizer.transform) if not activation.method else (None, None)
        _check_schedules(with_parts(METHODS[name], *shared), activation.schedules)
        return activation

    def as_yaml(self) -> str:
        """Return the whole recipe as YAML, every default spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _known(name: str) -> str:
    """Return the name of a method. Raises ValueError if none has it."""
    if name not in METHODS:
        raise ValueError(f"no method is named '{name}'. {did_you_mean(name, METHODS, '')}".strip())
    return name


def _check_schedules(method: Method, schedules: Mapping[str, Span]) -> None:
    """Raise Misfit if a schedule is of a parameter that the method does not have."""
    for name in schedules:
        if name not in method.schedules:
            own = ", ".join(method.schedules) or "none"
            what = f"{method.name} has no parameter '{name}' (its parameters: {own})"
            raise Misfit(f"schedules.{name}", what)


def effective_method(recipe: Recipe) -> Method:
    """Return the recipe's method, with the map and the transform that it names."""
    return with_parts(find_method(recipe.method), recipe.quantizer.map, recipe.quantizer.transform)


def effective_schedules(recipe: Recipe) -> dict[str, Schedule]:
    """Return the schedules of the weights: the recipe's if it names them, else the method's own.

    >>> effective_schedules(Recipe(method="bnn++"))
    {'mu': Schedule(start=5.0, end=60.0, shape='log')}
    """
    own = {name: span.schedule() for name, span in recipe.quantizer.schedules.items()}
    return {**effective_method(recipe).schedules, **own}


def effective_normalize(recipe: Recipe) -> float | None:
    """Return n in multiples of mean |w*|, or None for n = 1.

    >>> effective_normalize(Recipe(method="bc")), effective_normalize(Recipe(quantizer={"normalize": "none"}))
    (1.0, None)
    """
    return _multiple(recipe.quantizer.normalize, effective_method(recipe))


def activation_method(recipe: Recipe) -> Method:
    """Return the method of the binary inputs: the recipe's own for them, else that of the weights."""
    return find_method(recipe.activation.method) if recipe.activation.method else effective_method(recipe)


def activation_schedules(recipe: Recipe) -> dict[str, Schedule]:
    """Return the schedules of the binary inputs: those of the weights too, if the method is the same."""
    shared = {} if recipe.activation.method else effective_schedules(recipe)
    own = {name: span.schedule() for name, span in recipe.activation.schedules.items()}
    return {**activation_method(recipe).schedules, **shared, **own}


def activation_normalize(recipe: Recipe) -> float | None:
    """Return n of the binary inputs in multiples of beta, or None for n = 1."""
    return _multiple(recipe.activation.normalize, activation_method(recipe))


def activation_windows(recipe: Recipe) -> tuple[float, float]:
    """Return how far hardened inputs of convolutions, and of all else, pass gradients on, in betas."""
    window = recipe.activation.window
    return (4.8, 2.4) if window == "auto" else (window, window)


def _multiple(normalize: float | Literal["none"] | None, method: Method) -> float | None:
    if normalize is None:
        return method.normalize
    return None if normalize == "none" else normalize
