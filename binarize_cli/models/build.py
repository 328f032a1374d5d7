"""Architecture only: what a packed file needs so that its network can be rebuilt, on any machine, offline."""

from __future__ import annotations

from functools import cache
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

import binarize_cli.models.cifar_resnet
import binarize_cli.models.digits  # noqa: F401 - both register their models with timm
from binarize_cli.errors import InputError

# Without the classifiers that only training calls, and with the input scaled as for the pretrained weights.
WITHOUT_AUXILIARY = {"aux_logits": False, "transform_input": True, "init_weights": False}
TORCHVISION_KWARGS = {"googlenet": WITHOUT_AUXILIARY, "inception_v3": WITHOUT_AUXILIARY}


def build(source: str, name: str, num_classes: int, **kwargs: Any) -> nn.Module:
    """Return the network `name` of `source` ("timm" or "torchvision") with random weights, in training mode.

    `kwargs` are the builder's own (`img_size` of timm, `image_size` of torchvision's transformers). Nothing
    is downloaded. Raises InputError where the installed library has no such model or the model does not take
    such a keyword or value.
    """
    check_installed(source, name)
    try:
        if source == "torchvision":
            kwargs = TORCHVISION_KWARGS.get(name, {}) | kwargs
            return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **kwargs)
        return timm.create_model(name, pretrained=False, num_classes=num_classes, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        given = ", ".join(f"{key}={value}" for key, value in kwargs.items())
        raise InputError(f"cannot be built with {given or 'its defaults'}: {error}", where=name) from error


def build_skeleton(source: str, name: str, num_classes: int, **kwargs: Any) -> nn.Module:
    """Return the same network without memory for its weights (on the meta device): names and shapes alone."""
    try:
        with torch.device("meta"):
            return build(source, name, num_classes, **kwargs)
    except NotImplementedError:  # torchvision's RegNets compute their widths with tensors
        with _StorageOnMeta():
            return build(source, name, num_classes, **kwargs)


class _StorageOnMeta(TorchFunctionMode):
    """What parameters and buffers are made with gives tensors without memory; computed values stay values."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


@cache
def torchvision_classifiers() -> frozenset[str]:
    """Return the names of torchvision's classifiers: models of segmentation and the like fetch a backbone."""
    return frozenset(torchvision.models.list_models(module=torchvision.models))


def check_installed(source: str, name: str) -> None:
    """Raise InputError where the installed library has no classifier, or no pretrained tag, `name`."""
    library = {"timm": timm, "torchvision": torchvision}.get(source)
    if library is None:
        raise InputError(f"no model library {source!r}", where=name, hint="There are timm and torchvision.")
    known = timm.is_model(name) if source == "timm" else name in torchvision_classifiers()
    if not known:
        hint = "Another version of the library may have it."
        raise InputError(f"{source} {library.__version__} has no such model", where=name, hint=hint)
    if source == "timm":
        try:
            timm.models.get_pretrained_cfg(name)
        except RuntimeError as error:
            raise InputError(f"timm {timm.__version__}: {error}", where=name) from error
