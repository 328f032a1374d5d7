"""What the user typed -> which model of which library.

Nothing heavy is imported, so that a misspelt name is answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from binarize_cli.errors import InputError, closest
from binarize_cli.files import expanded
from binarize_cli.models.library_names import timm_names, timm_renamed, timm_tags, torchvision_names
from binarize_cli.models.saved import SavedModel, read_saved

# Our own models, which `cifar_resnet` and `digits` register with timm.
OWN = (
    "resnet20_cifar",
    "resnet32_cifar",
    "resnet44_cifar",
    "resnet56_cifar",
    "digits_vit",
    "digits_resnet",
)

ALIASES = {
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224",
    "deit3_small": "deit3_small_patch16_224",
    "deit3_base": "deit3_base_patch16_224",
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "beit_base": "beit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "mixer_base": "mixer_b16_224",
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv3_small": "mobilenetv3_small_100",
    "mobilenetv3_large": "mobilenetv3_large_100",
    **{f"cifar_resnet{depth}": f"resnet{depth}_cifar" for depth in (20, 32, 44, 56)},
    **{f"resnet{depth}": f"resnet{depth}_cifar" for depth in (20, 32, 44, 56)},
}

HeadChoice = Literal["auto", "keep", "subset", "replace"]
HEAD_CHOICES: tuple[HeadChoice, ...] = get_args(HeadChoice)

_LISTING = (
    "Any classification model of timm, torchvision/NAME, hf-hub:OWNER/NAME, local-dir:FOLDER, "
    "or one of ours: " + ", ".join(OWN) + "."
)


@dataclass(frozen=True)
class ModelName:
    """A model that exists: the library that builds it and its exact name there."""

    source: str  # "timm" (our own models too: they are registered with it) or "torchvision"
    name: str  # with timm's tag where one was given: "vit_base_patch16_224.augreg_in21k"
    typed: str  # as the user spelt it
    saved: SavedModel | None = field(default=None, compare=False)  # where it is a folder's or a repository's

    @property
    def short(self) -> str:
        """What the user typed, fit for a folder name; of a path or a repository the last part."""
        if self.saved:
            where = self.saved.repository or str(self.saved.folder.absolute())
            return where.partition("@")[0].rstrip("/").rpartition("/")[2] or self.name
        return self.typed.replace("/", "-")

    @property
    def own(self) -> bool:
        """Whether it is one of this package's models, which no hub holds."""
        return self.name in OWN


def resolve(text: str) -> ModelName:
    """Return the model that `text` names: a timm name or tag, an alias, `torchvision/NAME`, or one of ours.

    `hf-hub:OWNER/NAME[@REVISION]` and `local-dir:FOLDER` name what timm saved there; only a repository that
    is not in the cache is asked for over the network. A name that timm has renamed resolves to the current
    one. Raises InputError, with the nearest known names, for a model or a tag that does not exist.
    """
    kind, colon, place = text.partition(":")
    if colon and kind in ("hf-hub", "hf_hub", "local-dir"):
        return _resolve_saved(kind, place, typed=text)
    library, _, rest = text.rpartition("/")
    if library == "torchvision":
        return _resolve_torchvision(rest, typed=text)
    if library not in ("", "timm"):
        raise InputError(f"no model library {library!r}", where=text, hint=_LISTING)

    architecture, _, tag = rest.partition(".")
    architecture = ALIASES.get(architecture, architecture)
    if renamed := timm_renamed().get(architecture):
        architecture, _, current_tag = renamed.partition(".")
        tag = tag or current_tag
    if architecture not in OWN and architecture not in timm_names():
        known = [*OWN, *ALIASES, *sorted(timm_names())]
        raise InputError(f"no model {architecture!r}", hint=closest(architecture, known, _LISTING))
    if tag:
        _check_tag(architecture, tag)
    return ModelName("timm", f"{architecture}.{tag}" if tag else architecture, typed=text)


def _resolve_saved(kind: str, place: str, typed: str) -> ModelName:
    if kind == "local-dir":
        saved = read_saved(expanded(Path(place)))
    else:
        from binarize_cli.models.hub import fetch_config

        saved = read_saved(fetch_config(typed, place).parent, repository=place)
    try:
        found = resolve(saved.architecture)
    except InputError as error:
        raise InputError(f"its config.json: {error.what}", where=typed, hint=error.hint) from None
    return replace(found, typed=typed, saved=saved)


def _resolve_torchvision(name: str, typed: str) -> ModelName:
    if name not in torchvision_names():
        known = [f"torchvision/{each}" for each in sorted(torchvision_names())]
        listing = "torchvision/NAME takes the classification models of torchvision."
        raise InputError(f"no model {typed!r}", hint=closest(typed, known, listing))
    return ModelName("torchvision", name, typed=typed)


def _check_tag(architecture: str, tag: str) -> None:
    known = timm_tags().get(architecture, [])
    # A few of timm's architectures make up their tags in code; only timm itself can judge those, in `build`.
    made_up_in_code = not known and architecture not in OWN
    if tag not in known and not made_up_in_code:
        listing = f"Tags of {architecture}: {', '.join(known)}." if known else f"{architecture} has no tags."
        raise InputError(f"no pretrained tag {tag!r} of {architecture}", hint=closest(tag, known, listing))
