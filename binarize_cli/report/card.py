"""README.md of a run folder: a model card with the Hub's front matter, so that the folder can be uploaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
import yaml

from binarize_cli.errors import printable
from binarize_cli.report.tables import NETWORKS

DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
"""The Hub's names of the datasets that we open by other ones."""
UNKNOWN = "unknown"
HUB = "Hugging Face "
"""Before a repository's name, where provenance says where weights came from."""

BODY = """
# {name}, 1 bit a weight

{model} of {source}, made a network of 1-bit weights by bnnpp: method `{method}`, task `{task}`.
`model.safetensors` takes {size}, {ratio:.1f} times less than in float32 ({float32}).

| network | top-1 | top-5 | images |
|---|---:|---:|---:|
{scores}

Scored on the validation images of {data} ({classes} classes). The row "packed file" is that of the very
file in this folder, loaded back from disk.

## How to load it

```python
import bnnpp
from PIL import Image

net = bnnpp.load("model.safetensors")
logits = net(net.transform(Image.open("image.jpg")))  # [1, {classes}]; net.classes names them
```

```console
$ bnnpp predict model.safetensors image.jpg
$ bnnpp export model.safetensors --to onnx
```

## How it was made

```console
$ {command}
```

{steps} steps of fine-tuning in {precision} on {device}; float weights: {weights}. `recipe.yaml` has every
setting, `report.html` every measurement.

## Licence

{licence}
"""


def render_card(report: Mapping[str, Any]) -> str:
    """Return the model card of a run, from the document that report.json holds."""
    front = yaml.safe_dump(front_matter(report), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n{_body(report)}"


def front_matter(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the Hub reads: the library, the base model, the data, the score, the licence.

    What is not known is left out, but for the licence, which is `unknown`.
    """
    base, licence = _base(report)
    dataset = _dataset(report["data"]["name"])
    front: dict[str, Any] = {
        "library_name": "bnnpp",
        "pipeline_tag": "image-classification",
        "license": licence,
        "tags": [
            "image-classification",
            "binary-neural-network",
            "1-bit",
            "bnnpp",
            report["model"]["source"],
        ],
    }
    if base:
        front |= {"base_model": base, "base_model_relation": "quantized"}
    if dataset:
        front["datasets"] = [dataset]
    scored = report["accuracy"]["packed"]
    metrics = [
        {"type": "accuracy", "name": name, "value": round(scored[key] / 100, 6)}
        for key, name in (("top1", "Accuracy"), ("top5", "Top-5 accuracy"))
    ]
    of = {"type": dataset or "image-folder", "name": _name_of(report["data"]["name"]), "split": "validation"}
    task = {"type": "image-classification", "name": "Image classification"}
    result = {"task": task, "dataset": of, "metrics": metrics}
    name = f"{report['model']['name']}-{report['method']}-{report['task']}"
    return front | {"metrics": ["accuracy"], "model-index": [{"name": name, "results": [result]}]}


def _base(report: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the repository of the float model on the Hub, if its weights came from there, and its licence.

    Weights of a file may be anyone's, so of these nothing is said.
    """
    model, weights = report["model"], str(report["provenance"]["weights"])
    base = weights.removeprefix(HUB)
    if base == weights:
        return None, UNKNOWN
    config = timm.models.get_pretrained_cfg(model["name"]) if model["source"] == "timm" else None
    return base, (config and config.license) or UNKNOWN


def _dataset(name: str) -> str | None:
    """Return the dataset's repository on the Hub, if it is known."""
    if name.startswith(("hfds/", "hfids/")):
        return name.partition("/")[2]
    return DATASETS.get(name)


def _name_of(data: str) -> str:
    """Return a dataset's name; of a folder the last part, since the rest is the owner's business."""
    return data.rstrip("/").rpartition("/")[2] if data.startswith("/") else data


def without_places(command: str) -> str:
    """Return a command with only the last part of every absolute path.

    >>> without_places("bnnpp binarize digits_vit --data-dir /home/me/photos --output run/one")
    'bnnpp binarize digits_vit --data-dir photos --output run/one'
    """
    return re.sub(r"(?<!\S)/(?:[^\s/]+/)+(?=[^\s/])", "", command)


def _body(report: Mapping[str, Any]) -> str:
    model, data, made = report["model"], report["data"], report["provenance"]
    found = [(NETWORKS[key], score) for key, score in report["accuracy"].items() if score]
    licence = front_matter(report)["license"]
    return BODY.format(
        name=model["name"],
        model=model["name"],
        source=model["source"],
        method=report["method"],
        task=report["task"],
        size=_size(report["bytes"]["total"]),
        ratio=report["ratio"],
        float32=_size(report["float32_bytes"]),
        scores="\n".join(
            f"| {label} | {s['top1']:.2f} | {s['top5']:.2f} | {s['images']:,} |" for label, s in found
        ),
        data=printable(_name_of(data["name"])),
        classes=model["num_classes"],
        command=without_places(printable(report["command"])),
        steps=made["steps"],
        precision=made["precision"],
        device=made["device"],
        weights=printable(str(made["weights"])),
        licence="Not known: that of the float weights and of the data counts. Set `license` above before you "
        "share this."
        if licence == UNKNOWN
        else f"That of the float weights: `{licence}`.",
    )


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
