"""`bnnpp binarize`."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

from binarize_cli import ranks, slurm
from binarize_cli.cli import options as o
from binarize_cli.console import result
from binarize_cli.errors import InputError, Interrupted


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
    teacher_logits: o.TeacherLogits = None,
    skip_unreadable: o.SkipUnreadable = False,
    weights: o.Weights = None,
    no_pretrained: o.NoPretrained = False,
    num_classes: o.NumClasses = None,
    img_size: o.ImgSize = None,
    output: o.Output = None,
    device: o.Device = "auto",
    resume: o.Resume = None,
    save_minutes: o.SaveMinutes = 10.0,
    compile: o.Compile = False,
    overwrite: o.Overwrite = False,
    as_json: o.Json = False,
) -> None:
    """Binarize a model, fine-tune it, pack it; prints the path of the packed file.

    bnnpp binarize digits_vit --method bnn++

    bnnpp binarize deit_tiny --method bnn++ --data-dir imagenette --epochs 10

    bnnpp binarize torchvision/resnet18 --method bc --dataset cifar10 --set train.lr=1e-4
    """
    flags = {
        "method": method,
        "task": task,
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "train.opt": opt,
        "train.sched": sched,
        "train.weight_decay": weight_decay,
        "train.amp": amp,
        "train.seed": seed,
    }
    if weights is not None and no_pretrained:
        raise InputError(
            "--weights and --no-pretrained are mutually exclusive", hint="Leave one of them out."
        )
    chosen = validated(recipe, flags, set_ or [])

    from binarize_cli.training.stop import StopRequest

    with StopRequest(training=False) as stop:  # before torch is imported: until then a signal kills
        from binarize_cli.models import hub, names

        name = names.resolve(model)
        if weights is None and not no_pretrained:
            hub.check_reachable(name)  # before seconds go by in importing torch

        from binarize_cli import pipeline, plan

        job = plan.Job(
            command=shlex.join(["bnnpp", *sys.argv[1:]]),
            model=name,
            recipe=chosen,
            dataset=dataset,
            data_dir=data_dir,
            weights=weights,
            pretrained=not no_pretrained,
            num_classes=num_classes,
            img_size=img_size,
            output=output,
            device=device,
            workers=workers,
            cache_gb=cache_gb,
            teacher_logits=teacher_logits,
            resume=resume or ("auto" if slurm.inside() else "never"),
            save_minutes=save_minutes,
            compile=compile,
            overwrite=overwrite and not slurm.restarted(),  # then it would be its own run that it replaces
            skip_unreadable=skip_unreadable,
        )
        try:
            folder, document = pipeline.run(job, stop)
        except Interrupted as left:
            _leave(stop, left)
            raise
    result(json.dumps(document) if as_json else str(folder.packed))


def _leave(stop, left: Interrupted) -> None:
    """Under SLURM the job is queued again, unless it was Ctrl-C; the other ranks wait until that is done."""
    if slurm.inside() or ranks.world() > 1:
        stop.leaving()
    if ranks.is_rank0() and left.exit_code == Interrupted.exit_code:
        slurm.requeue()
    ranks.barrier()


def validated(name: str | None, flags: dict[str, Any], pairs: list[str]):
    """The recipe of that name, or the task's default; then the flags, then `--set`; validated together."""
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
