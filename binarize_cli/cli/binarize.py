"""`bnnpp binarize`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from functools import wraps
from typing import Any

import typer

from binarize_cli import ranks, slurm
from binarize_cli.cli import options as o
from binarize_cli.console import result
from binarize_cli.errors import InputError, Interrupted
from binarize_cli.run_folder import RunFolder

RECIPE_FLAGS = {
    "method": "method",
    "task": "task",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "opt": "train.opt",
    "sched": "train.sched",
    "weight_decay": "train.weight_decay",
    "amp": "train.amp",
    "seed": "train.seed",
    "teacher": "distill.teacher",
    "mean": "preprocess.mean",
    "std": "preprocess.std",
    "interpolation": "preprocess.interpolation",
    "crop_pct": "preprocess.crop_pct",
}
"""The flags that set a key of the recipe. All other flags are fields of the job, under the same name."""


def binarize(
    model: o.Model,
    method: o.Method = None,
    task: o.Task = None,
    recipe: o.RecipeName = None,
    set_: o.Set = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.Lr = None,
    opt: o.Opt = None,
    sched: o.Sched = None,
    weight_decay: o.WeightDecay = None,
    amp: o.Amp = None,
    seed: o.Seed = None,
    data_dir: o.DataDir = None,
    dataset: o.Dataset = None,
    workers: o.Workers = None,
    cache_gb: o.CacheGb = 4.0,
    teacher: o.Teacher = None,
    teacher_weights: o.TeacherWeights = None,
    teacher_logits: o.TeacherLogits = None,
    skip_unreadable: o.SkipUnreadable = False,
    weights: o.Weights = None,
    no_pretrained: o.NoPretrained = False,
    num_classes: o.NumClasses = None,
    head: o.Head = "auto",
    img_size: o.ImgSize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    interpolation: o.Interpolation = None,
    crop_pct: o.CropPct = None,
    output: o.Output = None,
    device: o.Device = "auto",
    resume: o.Resume = None,
    save_minutes: o.SaveMinutes = 10.0,
    compile: o.Compile = None,
    parallel: o.Parallel = "ddp",
    deterministic: o.Deterministic = False,
    overwrite: o.Overwrite = False,
    show_images: o.ShowImages = False,
    as_json: o.Json = False,
) -> None:
    """Binarize a model, fine-tune it, pack it; prints the path of the packed file.

    bnnpp binarize digits_vit --method bnn++

    bnnpp binarize deit_tiny --method bnn++ --data-dir imagenette --epochs 10

    bnnpp binarize torchvision/resnet18 --method bc --dataset cifar10 --set train.lr=1e-4
    """
    folder, document = run_job(shlex.join(["bnnpp", *sys.argv[1:]]), dict(locals()))
    result(json.dumps(document) if as_json else str(folder.packed))


def flags_of(words: Sequence[str]) -> dict[str, Any]:
    """Return the flags of `bnnpp binarize WORDS`, by name. Raises the command's usage errors."""
    app = typer.Typer(add_completion=False)
    app.command(cls=o.WithWordsLeftOut)(wraps(binarize)(lambda **given: given))
    return app(list(words), standalone_mode=False)


def run_job(command: str, flags: dict[str, Any]) -> tuple[RunFolder, dict[str, Any]]:
    """Run the job that flags of `bnnpp binarize` ask for, by their names; return its folder and report.

    Under SLURM a job that is stopped is queued again. Raises all that the pipeline raises.
    """
    flags = {name: value for name, value in flags.items() if name != "as_json"}
    model, no_pretrained = flags.pop("model"), flags.pop("no_pretrained", False)
    recipe, pairs = flags.pop("recipe", None), flags.pop("set_", None) or []
    if flags.get("weights") is not None and no_pretrained:
        raise InputError(
            "--weights and --no-pretrained are mutually exclusive", hint="Leave one of them out."
        )
    keys = {key: flags.pop(name, None) for name, key in RECIPE_FLAGS.items()}
    for key in ("preprocess.mean", "preprocess.std"):
        keys[key] = o.numbers(keys[key], "--" + key.rpartition(".")[2])
    chosen = recipe_from_flags(recipe, keys, pairs)

    from binarize_cli.data.datasets import check_dataset
    from binarize_cli.files import check_folder
    from binarize_cli.run_folder import check_weights
    from binarize_cli.training.stop import StoppedEarly, StopRequest

    check_dataset(flags.get("dataset"), flags.get("data_dir"))
    check_weights(flags.get("weights"), flags.get("output"))
    check_weights(flags.get("teacher_weights"), flags.get("output"))
    check_folder(flags.get("teacher_logits"), "--teacher-logits")
    if flags.get("teacher_weights") is not None and chosen.distill.teacher is None:
        raise InputError("no teacher is named", where="--teacher-weights", hint="Pass --teacher NAME too.")

    with StopRequest(training=False) as stop:  # before torch is imported: until then a signal kills
        try:
            from binarize_cli.models import hub, names

            o.check_choice(flags.get("head", "auto"), names.HEAD_CHOICES, "--head")
            name = names.resolve(model)
            if flags.get("weights") is None and not no_pretrained:
                hub.check_reachable(name)  # before seconds go by in importing torch
            if chosen.distill.teacher and flags.get("teacher_weights") is None:
                hub.check_reachable(names.resolve(chosen.distill.teacher))

            from binarize_cli.device import keep_freed_memory
            from binarize_cli.job import Job
            from binarize_cli.pipeline import run_pipeline

            flags["resume"] = flags.get("resume") or ("auto" if slurm.inside() else "never")
            # In a job that was queued again, what would be overwritten is the job's own run.
            flags["overwrite"] = flags.get("overwrite", False) and not slurm.restarted()
            job = Job(command=command, model=name, recipe=chosen, pretrained=not no_pretrained, **flags)
            keep_freed_memory()
            return run_pipeline(job, stop)
        except Interrupted as interrupted:
            _requeue(stop, interrupted.exit_code)
            ranks.barrier()  # the other ranks wait until that is done
            raise
        except StoppedEarly as early:  # perhaps on this rank alone: nobody waits
            _requeue(stop, early.exit_code)
            told = Interrupted("stopped before training began", exit_code=early.exit_code)
            told.on_all_ranks = False
            raise told from None


def _requeue(stop: Any, exit_code: int) -> None:
    """Queue a SLURM job again, unless it was Ctrl-C."""
    if slurm.inside() or ranks.world() > 1:
        stop.leaving()
    if ranks.is_rank0() and exit_code == Interrupted.exit_code:
        slurm.requeue()


def recipe_from_flags(name: str | None, flags: dict[str, Any], pairs: list[str]) -> Any:
    """Return the recipe of that name, or the task's default, with flags and `--set` applied, validated."""
    from binarize_cli import recipe_io

    given = [
        (key, value, "--" + key.rpartition(".")[2].replace("_", "-"))
        for key, value in flags.items()
        if value is not None
    ]
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            hint = "For instance --set train.lr=1e-4."
            raise InputError(f"'{pair}' is not KEY=VALUE", where="--set", hint=hint)
        given.append((key, recipe_io.parse_value(text), "--set"))
    task = {key: value for key, value, _ in given}.get("task")
    draft = recipe_io.read(name or recipe_io.default(task))
    for key, value, place in given:
        draft.set(key, value, place)
    return draft.validate()
