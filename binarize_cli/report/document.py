"""report.json: one document with everything that was measured. The page and the tables are drawn from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from binarize_cli.binarize.batchnorm import Reestimation
from binarize_cli.data.images import ImageDataset
from binarize_cli.evaluation import Measurement, worst_confusions
from binarize_cli.models.classes import described
from binarize_cli.packed.agreement import Agreement
from binarize_cli.packed.format import PackedFile
from binarize_cli.report.confusion import sparse
from binarize_cli.report.origin import commit, machine
from binarize_cli.training.log import EpochRow


def report_document(
    *,
    command: str,
    file: PackedFile,
    account: Mapping[str, Any],
    dataset: ImageDataset,
    train_images: int,
    accuracy: Mapping[str, Measurement],
    agreement: Agreement,
    batchnorm: Reestimation | None,
    rows: Sequence[EpochRow],
    packed_epoch: int | None,
    seconds: float,
    latents: Sequence[Mapping[str, Any]] = (),
    inputs: Sequence[Mapping[str, Any]] = (),
    changed: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Return the document of a run.

    `account` is what `packed.contents` says of the file; `accuracy` has float, soft, hard and packed;
    `packed_epoch` is None if nothing was trained; `latents` and `inputs` are those of
    `binarize.distributions`, `changed` those of `changed_images`.
    """
    packed, names = accuracy["packed"], described(dataset.classes)
    epochs = [row.to_json() for row in rows]
    return {
        "tool": f"bnnpp {account['provenance']['bnnpp']}",
        "command": command,
        "file": file.path.name,
        "method": account["method"],
        "task": account["task"],
        "model": account["model"],
        "data": {
            "name": dataset.name,
            "reference": dataset.reference,
            "fingerprint": dataset.fingerprint,
            "train_images": train_images,
            "held_out_images": batchnorm.held_out_images if batchnorm else 0,
            "val_images": packed.images,
            "classes": list(dataset.classes),
            "names": names,
        },
        "accuracy": {
            name: accuracy[name].to_json() if name in accuracy else None
            for name in ("float", "soft", "hard", "packed")
        },
        "rounding": rounding(accuracy, account["recipe"]["pack"]["float_dtype"]),
        "agreement": agreement.to_json(),
        "batchnorm": batchnorm.to_json() if batchnorm else None,
        "packed_epoch": packed_epoch,
        "selection": account["recipe"]["train"]["select"],
        "epochs": [{key: value for key, value in row.items() if key != "layer_flips"} for row in epochs],
        "flips": layer_flips(epochs, [row["name"] for row in latents]),
        "latents": list(latents),
        "inputs": list(inputs),
        "changed": list(changed),
        "layers": account["layers"],
        "bytes": account["bytes"],
        "macs": account["macs"],
        "binary_weights": account["binary_weights"],
        "float32_bytes": account["float32_bytes"],
        "ratio": account["ratio"],
        "confusion": sparse(packed.confusion),
        "worst": worst_confusions(packed, names),
        "recipe": account["recipe"],
        "provenance": {
            **account["provenance"],
            "seconds": round(seconds, 1),
            "commit": commit(),
            "machine": machine(account["provenance"]["device"]),
        },
    }


def rounding(accuracy: Mapping[str, Measurement], float_dtype: str) -> dict[str, Any]:
    """Return what rounding for the file changed: packed less the network before it, in points of top-1."""
    before = accuracy.get("hard") or accuracy["float"]
    return {"float_dtype": float_dtype, "points": round(accuracy["packed"].top1 - before.top1, 4)}


def layer_flips(epochs: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> dict[str, Any] | None:
    """Return the flip ratios of the last stage, over its epochs a list a layer; None without training."""
    last = [row for row in epochs if row["stage"] == epochs[-1]["stage"] and len(row["layer_flips"])]
    if not last or len(layers) != len(last[0]["layer_flips"]):
        return None
    shares = [list(column) for column in zip(*(row["layer_flips"] for row in last), strict=True)]
    return {"layers": list(layers), "first_epoch": last[0]["epoch"], "shares": shares}
