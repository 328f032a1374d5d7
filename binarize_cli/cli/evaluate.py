"""`bnnpp eval`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from binarize_cli.cli import options as o
from binarize_cli.console import result, say, show, warn
from binarize_cli.errors import InputError, printable

ONNX = ".onnx"


def evaluate(
    file: o.ScoredFile,
    data_dir: o.DataDir = None,
    dataset: o.Dataset = None,
    batch_size: o.ScoreBatchSize = 64,
    workers: o.Workers = None,
    cache_gb: o.CacheGb = 4.0,
    skip_unreadable: o.SkipUnreadable = False,
    classes: o.ScoredClasses = "all",
    activations: o.Activations = "float",
    device: o.Device = "auto",
    as_json: o.Json = False,
) -> None:
    """Score a packed file, or an ONNX export of one: no model flag, no recipe, no network access.

    Without --data-dir or --dataset, on the dataset that the file was made with. A dataset of some of the
    file's classes is scored over all of them, or over its own with --classes present. With --activations
    int8 a file of task bw computes with inputs of 8 bits: faster on CPUs, and almost the same.

    bnnpp eval runs/digits_vit-bnn++-bw/model.safetensors
    """
    from binarize_cli.data.datasets import check_dataset

    o.check_choice(classes, o.SCORED_CLASSES, "--classes")
    o.check_choice(activations, o.ACTIVATIONS, "--activations")
    if file.suffix == ONNX and activations != "float":
        hint = "Leave it out: 'bnnpp export --to onnx --activations int8' writes such a file."
        raise InputError("an ONNX file computes as it was exported", where="--activations", hint=hint)
    packed = _opened(file)
    if packed.document.model.source == "caller":
        what = f"holds a network of the caller's own ({packed.document.model.name}): it has no model to build"
        hint = "Score it in Python: net = bnnpp.load_into(YOUR_MODULE, FILE)."
        raise InputError(what, where=printable(str(file)), hint=hint)
    if dataset is not None or data_dir is not None:
        check_dataset(dataset, data_dir)
    images = _dataset(packed, dataset, data_dir)
    known = packed.document.model.classes
    _check_classes(images, known)

    from binarize_cli.data.batches import choose_workers
    from binarize_cli.data.decode import decode
    from binarize_cli.data.loaders import ScoreBatches
    from binarize_cli.device import find_device, keep_freed_memory, place
    from binarize_cli.evaluation import measure, worst_confusions
    from binarize_cli.models.heads import LogitsOf
    from binarize_cli.models.load import Preprocessing
    from binarize_cli.packed.int8_inputs import use_int8_inputs
    from binarize_cli.report.confusion import sparse
    from binarize_cli.report.tables import worst_table

    where = find_device("cpu" if file.suffix == ONNX else device)
    keep_freed_memory()
    net = place(_network(packed), where)
    if activations == "int8":
        net = use_int8_inputs(net)
        say("inputs of binary weights in 8 bits: another network than the one that the file was scored with")
    if classes == "present":
        net = LogitsOf(net, [known.index(name) for name in images.classes])
    else:
        images = images.relabelled(known)
    say(images.summary)
    val = decode(images.val, skip_unreadable=skip_unreadable, limit_gb=cache_gb)
    processes = choose_workers(workers, images, len(val))
    preprocessing = Preprocessing.from_json(packed.document.preprocessing.model_dump())
    batches = ScoreBatches(val, preprocessing, batch_size, workers=processes, device=where)
    m = measure(net, batches, where)
    if not math.isfinite(m.loss):
        raise InputError("the network's outputs are not finite", where=printable(str(file)))
    worst = worst_confusions(m, images.classes)
    recorded = _recorded(packed, images, m, activations)
    if as_json:
        account = {
            "file": str(file),
            "dataset": images.name,
            "classes": len(images.classes),
            "activations": activations,
            "recorded": recorded,
            "worst": worst,
        }
        whole = m.to_json() | account | {"confusion": sparse(m.confusion)}
        result(json.dumps(whole, allow_nan=False))
        return
    scores = f"top-1 {m.top1:.2f}  top-5 {m.top5:.2f}  loss {m.loss:.4f}  images {m.images}"
    kind = "  inputs int8" if activations == "int8" else ""
    result(f"{scores}  images/s {m.images_per_second:.0f}{kind}")
    if worst:
        show(worst_table(worst))


def _opened(file: Path) -> Any:
    """Return a packed file, or an ONNX file that was made of one: both have a path and a document."""
    if file.suffix == ONNX:
        from binarize_cli.export.onnx_file import read_onnx

        return read_onnx(file)

    from binarize_cli.packed.format import read

    return read(file)


def _network(opened: Any) -> Any:
    if opened.path.suffix == ONNX:
        return opened.network()

    from binarize_cli.packed.runtime import rebuild

    return rebuild(opened)


def _recorded(packed: Any, images: Any, found: Any, activations: str) -> dict[str, Any] | None:
    """Return the score that the file holds, if it is of the same images; warn if it is another."""
    scored, data = packed.document.accuracy, packed.document.data
    if scored is None or data.fingerprint != images.fingerprint or scored.images != found.images:
        return None
    if len(images.classes) != len(packed.document.model.classes):
        return None  # over fewer classes than the file's own score
    if scored.top1 != found.top1 and activations == "float":
        warn(
            f"the file says top-1 {scored.top1:.2f} on these images, here it is {found.top1:.2f}: "
            "another device or version of torch may turn an image or two, more means another network"
        )
    return scored.model_dump()


def _check_classes(images: Any, known: list[str]) -> None:
    """Warn if the dataset has only some of the file's classes. Raises InputError if it has others."""
    unknown = [name for name in images.classes if name not in set(known)]
    if unknown:
        what = f"{len(unknown)} of its {len(images.classes)} classes are not among the file's {len(known)}"
        hint = f"It has {_some(unknown)}; the file has {_some(known)}."
        raise InputError(what, where=images.name, hint=hint)
    if len(images.classes) < len(known):
        warn(f"the dataset has {len(images.classes)} of the file's {len(known)} classes")


def _dataset(packed: Any, dataset: str | None, data_dir: Path | None) -> Any:
    """Return the dataset that was asked for, else the one recorded in the file."""
    from binarize_cli.data.datasets import open_dataset, open_recorded

    if dataset is not None or data_dir is not None:
        return open_dataset(dataset, data_dir, need_train=False)
    data = packed.document.data
    try:
        return open_recorded(data.dataset, data.data_dir)
    except InputError as error:
        what = f"the dataset it was made with cannot be opened: {printable(str(error))}"
        hint = "Name one with --data-dir or --dataset; what a file names is never downloaded."
        raise InputError(what, where=printable(str(packed.path)), hint=hint) from None


def _some(names: list[str]) -> str:
    return printable(", ".join(names[:3]))[:200] + (" ..." if len(names) > 3 else "")
