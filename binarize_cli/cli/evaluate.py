"""`bnnpp eval`."""

from __future__ import annotations

import json
from pathlib import Path

from binarize_cli.cli import options as o
from binarize_cli.console import result, show
from binarize_cli.errors import InputError


def evaluate(
    file: o.PackedFile,
    data_dir: o.DataDir = None,
    dataset: o.Dataset = None,
    batch_size: o.BatchSize = 64,
    workers: o.Workers = 2,
    cache_gb: o.CacheGb = 4.0,
    skip_unreadable: o.SkipUnreadable = False,
    device: o.Device = "auto",
    as_json: o.Json = False,
) -> None:
    """Score a packed file: no model flag, no recipe, no network access.

    Without --data-dir or --dataset, on the dataset that the file was made with.

    bnnpp eval runs/digits_vit-bnn++-bw/model.safetensors
    """
    from binarize_cli.packed.format import read

    packed = read(file)
    source = _source(packed, dataset, data_dir)
    classes = packed.document["model"]["classes"]
    if list(source.classes) != classes:
        what = f"its {len(source.classes)} classes are not the file's {len(classes)} ({_some(classes)})"
        raise InputError(what, where=source.name, hint="Give the dataset that the file was made for.")

    from binarize_cli.data.decode import decode
    from binarize_cli.data.loaders import ScoreBatches
    from binarize_cli.device import find_device, place
    from binarize_cli.evaluation import measure, worst_confusions
    from binarize_cli.models.load import Preprocessing
    from binarize_cli.packed.runtime import rebuild
    from binarize_cli.report.confusion import sparse
    from binarize_cli.report.tables import worst_table

    where = find_device(device)
    net = place(rebuild(packed), where)
    images = decode(source.val, skip_unreadable=skip_unreadable, limit_gb=cache_gb)
    preprocessing = Preprocessing.from_json(packed.document["preprocessing"])
    batches = ScoreBatches(images, preprocessing, batch_size, workers=workers, device=where)
    measurement = measure(net, batches, where)
    worst = worst_confusions(measurement, classes)
    if as_json:
        account = {"file": str(file), "dataset": source.name, "worst": worst}
        result(json.dumps(measurement.to_json() | account | {"confusion": sparse(measurement.confusion)}))
        return
    m = measurement
    scores = f"top-1 {m.top1:.2f}  top-5 {m.top5:.2f}  loss {m.loss:.4f}  images {m.images}"
    result(f"{scores}  images/s {m.images_per_second:.0f}")
    if worst:
        show(worst_table(worst))


def _source(packed, dataset: str | None, data_dir: Path | None):
    """The dataset that was asked for, else the one recorded in the file."""
    from binarize_cli.data.datasets import open_dataset

    if dataset is not None or data_dir is not None:
        return open_dataset(dataset, data_dir, need_train=False)
    recorded = packed.document["data"]["reference"]
    folder = recorded.get("data_dir")
    try:
        return open_dataset(recorded.get("dataset"), Path(folder) if folder else None, need_train=False)
    except InputError as error:
        what = f"the dataset it was made with cannot be opened: {error}"
        raise InputError(
            what, where=str(packed.path), hint="Name one with --data-dir or --dataset."
        ) from None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
