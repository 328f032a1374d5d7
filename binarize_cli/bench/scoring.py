"""What scoring with a packed file costs beside its float model: batch by batch in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from binarize_cli.bench.float_onnx import onnx_session
from binarize_cli.bench.footprint import footprint
from binarize_cli.bench.time_by_kind import time_by_kind
from binarize_cli.device import full_float32, place
from binarize_cli.models.build import build
from binarize_cli.packed.format import PackedFile
from binarize_cli.packed.int8_inputs import use_int8_inputs
from binarize_cli.packed.runtime import rebuild

WARM_UP = 2


@torch.inference_mode()
def speeds(
    files: Sequence[PackedFile],
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    rounds: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Images a second of each file and of its float model, on the same random images; medians of the rounds.

    Those of task bw also with inputs of 8 bits. A row for each file, number of threads and batch size. The
    speed does not depend on the values of the weights: those of the float model are random.
    """
    return [
        row for file in files for count in threads for row in _rows(file, batch_sizes, count, rounds, device)
    ]


def _rows(
    file: PackedFile, batch_sizes: Sequence[int], threads: int, rounds: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    model, transform = file.document.model, file.document.preprocessing
    assert transform, "only a file of the caller's model has none, and that is not built"
    twin = build(model.source, model.name, model.num_classes, **model.builder_kwargs).eval()
    nets = {"float": place(twin, device), "packed": place(rebuild(file), device)}
    if file.document.task == "bw":
        nets["int8"] = use_int8_inputs(place(rebuild(file), device))
    with _threads(threads):
        for batch_size in batch_sizes:
            images = torch.randn(batch_size, *transform.input_size, device=device)
            runs: dict[str, Callable[[Tensor], Any]] = dict(nets)
            if device.type == "cpu" and (session := onnx_session(twin, images, threads)):
                runs["onnxruntime"] = session
            speed = _in_turn(runs, images, rounds)
            yield {
                "file": str(file.path),
                "model": model.name,
                "task": file.document.task,
                "batch_size": batch_size,
                "threads": threads,
                **speed,
                "ratio": speed["packed"] / speed["float"],
                "of_packed": time_by_kind(nets["packed"], images),
                "bytes": footprint(nets["packed"], file),
                **({"int8_ratio": speed["int8"] / speed["float"]} if "int8" in speed else {}),
            }


def _in_turn(runs: dict[str, Callable[[Tensor], Any]], images: Tensor, rounds: int) -> dict[str, float]:
    """Return the images a second of each, one batch of each after another."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(WARM_UP + rounds):
        for name, run in runs.items():
            taken = _seconds(run, images)
            if number >= WARM_UP:
                seconds[name].append(taken)
    return {name: len(images) / statistics.median(each) for name, each in seconds.items()}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(run: Callable[[Tensor], Any], images: Tensor) -> float:
    started = time.perf_counter()
    with full_float32(images.device):
        run(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - started
