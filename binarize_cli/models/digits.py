"""Two small classifiers of 8x8 handwritten digits, so that the tool can be tried without any download.

Their weights travel in the package as files this tool has written with method `float`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

from binarize_cli.models.cifar_resnet import CifarResNet


def embedded_weights(name: str) -> Path:
    """Return where the package keeps the weights of `name`, one of the models of this file."""
    return Path(__file__).parent / "assets" / f"{name}.safetensors"


_DIGITS = {
    "input_size": (1, 8, 8),
    "mean": (0.304,),  # of the embedded images, scaled to [0, 1]
    "std": (0.376,),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "num_classes": 10,
    "label_names": tuple("0123456789"),
}

default_cfgs = generate_default_cfgs(
    {
        "digits_vit": _DIGITS
        | {"fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"},
        "digits_resnet": _DIGITS | {"first_conv": "conv1", "classifier": "linear"},
    }
)


@register_model
def digits_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build a transformer of 4 blocks, width 64, 16 patches of 2x2 pixels: 0.2 million parameters."""
    shape: dict[str, Any] = {"patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4}
    pooling = {"global_pool": "avg", "class_token": False}
    return build_model_with_cfg(VisionTransformer, "digits_vit", pretrained, **(shape | pooling | kwargs))


@register_model
def digits_resnet(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Build the CIFAR ResNet of 14 layers on one channel: 0.2 million parameters."""
    return build_model_with_cfg(CifarResNet, "digits_resnet", pretrained, blocks=2, **kwargs)
