"""The whole story of `bnnpp binarize`: `run` reads from top to bottom."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from contextlib import ExitStack
from dataclasses import replace

import torch

from binarize_cli import ranks
from binarize_cli.binarize.calibrate import IMAGES, InputStats, calibrate
from binarize_cli.binarize.convert import binarize, binarize_inputs, harden
from binarize_cli.binarize.float_accumulator import FloatAccumulator
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.binarize.select import Layer
from binarize_cli.console import say, show, warn
from binarize_cli.files import RunFolder, check_same_run, choose_run, write_text
from binarize_cli.packed.agreement import Agreement, compare
from binarize_cli.packed.contents import contents
from binarize_cli.packed.document import packed_document, provenance
from binarize_cli.packed.export import packed_tensors
from binarize_cli.packed.format import PackedFile, read, write
from binarize_cli.packed.runtime import rebuild
from binarize_cli.plan import Job, Run, plan
from binarize_cli.recipe import Recipe, Train
from binarize_cli.report.document import report_document
from binarize_cli.report.html import render
from binarize_cli.report.tables import accuracy_table, layers_table
from binarize_cli.training.batchnorm import reestimate, reestimate_if_better
from binarize_cli.training.log import EpochRow, as_csv
from binarize_cli.training.loop import Trainer
from binarize_cli.training.objective import Objective
from binarize_cli.training.precision import place, precision
from binarize_cli.training.stop import StopRequest
from binarize_cli.training.teacher import LogitCache, Teacher


def run(job: Job, stop: StopRequest) -> tuple[RunFolder, dict]:
    """Binarize, fine-tune, pack, and score the packed file. Returns the run folder and the report's document.

    Raises InputError before anything is written; Diverged and Interrupted, with the state kept.
    """
    ranks.start()
    name = f"{job.model.short}-{job.recipe.method}-{job.recipe.task}"
    choice = ranks.broadcast_from_rank0(
        lambda: choose_run(name, job.output, job.resume, job.overwrite, job.command)
    )
    if choice.finished:
        return finished_before(choice.folder)
    with ExitStack() as held:
        with ranks.raise_on_all_ranks():
            this = plan(job, choice, stop)
            held.enter_context(this.folder.claimed())
        ranks.broadcast_from_rank0(lambda: begin(this))
        float_reference(this)
        make_binary(this)
        fine_tune(this)
        make_hard(this)
        file, agreement = ship(this)
        document = report(this, file, agreement)
    ranks.barrier()  # whoever reads the folder next finds all of it
    return this.folder, document


def finished_before(folder: RunFolder) -> tuple[RunFolder, dict]:
    """What a job finds that is queued again although its run had finished."""
    say(f"{folder.path} holds the finished run")
    return folder, json.loads(folder.report.read_text())


def begin(this: Run) -> None:
    """Say what will happen, and make the run folder. Raises InputError on resuming what was another run."""
    if this.recipe.task == "bw" or not this.method.binary:
        show(layers_table([row.to_json() for row in this.table]))
    say(f"{this.model.name}: {this.model.weights}; head {this.head}; {this.dataset.name}, on {where(this)}")
    identity = {
        "model": f"{this.model.source}/{this.model.name}",
        "weights": this.model.weights_sha256,
        "input_size": list(this.model.preprocessing.input_size),
        "dataset": this.dataset.fingerprint,
        "recipe": this.recipe.model_dump(mode="json"),
    }
    if this.resumed:
        check_same_run(this.folder, identity)
    else:
        this.folder.clear()
        write_text(this.folder.log, as_csv([]))
        write_text(this.folder.recipe, this.recipe.as_yaml())
        write_text(this.folder.command, this.job.command + "\n")
        write_text(this.folder.identity, json.dumps(identity, indent=1))


def where(this: Run) -> str:
    """The device, the precision where it is not float32, and how a batch is shared out."""
    kind = precision(this.recipe.train.amp, this.device)
    device = str(this.device) if kind == "float32" else f"{this.device} in {kind}"
    parts = [f"{ranks.world()} ranks"] * (ranks.world() > 1)
    parts += [f"{this.train.accumulate} micro-batches a step"] * (this.train.accumulate > 1)
    each = f", {this.train.micro_batch} images each" if parts else ""
    return ", ".join([device, *parts]) + each


def float_reference(this: Run) -> None:
    """Score the float model, after fitting a head that had to be replaced; it is the teacher from here on."""
    if not this.model.pretrained:
        say("from scratch: there is no float model to compare with or to learn from")
        return
    if this.head == "replaced":
        if not this.method.binary:
            return  # the run itself is the float fine-tuning
        epochs = this.recipe.train.float_epochs
        say(f"the head is new: {epochs} epochs of float fine-tuning first (train.float_epochs)")
        train(this, "float", this.recipe.train.model_copy(update={"epochs": epochs}))
    this.accuracy["float"] = this.score(this.net)
    say(f"float top-1 {this.accuracy['float'].top1:.2f}")
    rule = this.recipe.distill
    if (rule.weight or rule.blocks) and this.method.binary:
        this.teacher = Teacher(copy.deepcopy(this.net), keep_logits(this))


def keep_logits(this: Run) -> LogitCache | None:
    """Where the teacher's logits are kept, by what they depend on: its weights and the images it sees.

    They are those of whole batches: where batches are shared out, none are kept.
    """
    needed = this.recipe.distill.blocks  # the distance of blocks needs the teacher itself
    if this.job.teacher_logits is None or needed or this.train.parts > 1:
        return None
    rule = this.recipe.train
    views = ("seed", "batch_size", "mixup", "cutmix", "amp", "reestimate_batchnorm", "hold_out")
    weights = b"".join(t.cpu().numpy().tobytes() for t in this.net.state_dict().values())
    facts = {
        "weights": hashlib.sha256(weights).hexdigest(),
        "model": f"{this.model.source}/{this.model.name}",
        "images": [
            this.dataset.fingerprint,
            len(this.train.split),
            list(this.model.preprocessing.input_size),
        ],
        "augment": this.recipe.augment.model_dump(mode="json"),
        "train": {name: getattr(rule, name) for name in views},
        "device": this.device.type,
    }
    return LogitCache(this.job.teacher_logits, facts, len(this.train))


def make_binary(this: Run) -> None:
    """Put binary layers in the place of those that the table names; in bwa and bwaa with binary inputs."""
    if not this.method.binary:
        return
    this.quantizer = WeightQuantizer(this.recipe)
    images = calibration_images(this) if this.recipe.task != "bw" else []
    stats = look_at_inputs(this, images) if images else {}
    binarize(this.net, this.table, this.quantizer)
    binarize_inputs(this.net, stats, this.quantizer, this.recipe)
    if images and this.held_out is not None:  # convolutions give other means than before: t is taken off
        reestimate(this.net, [(batch, None) for batch in images], this.device)
    if this.teacher and this.recipe.distill.blocks:
        this.teacher.watch(this.net)


def calibration_images(this: Run) -> list[torch.Tensor]:
    """The first batches of training images, the same on every rank."""
    images: list[torch.Tensor] = []
    for inputs, _ in this.train.epoch(0, all_parts=True):
        images.append(inputs.to(this.device))
        if sum(map(len, images)) >= IMAGES:
            break
    return images


def look_at_inputs(this: Run, images: list[torch.Tensor]) -> dict[str, list[InputStats]]:
    """Calibrate on those images, and print the table of layers with what was found."""
    names = [row.name for row in this.table if row.binary]
    stats = calibrate(this.net, names, images, this.recipe)
    this.table = [described(row, stats.get(row.name), this.recipe) for row in this.table]
    show(layers_table([row.to_json() for row in this.table]))
    blind = [name for name, inputs in stats.items() if any(found.constant for found in inputs)]
    if blind:
        seen = sum(map(len, images))
        warn(
            f"{len(blind)} of {len(stats)} layers see a constant: over {seen} calibration images all inputs "
            f"have the same sign in {', '.join(blind)}. Set activation.threshold to learned."
        )
    return stats


def described(row: Layer, inputs: list[InputStats] | None, recipe: Recipe) -> Layer:
    """The row of a layer or product with binary inputs."""
    if inputs is None:
        return row
    text = "1 bit, one-sided" if any(found.one_sided for found in inputs) else "1 bit"
    rule = {"overflow": recipe.accumulator.overflow, "shift": inputs[0].shift}
    rule = rule if recipe.task == "bwaa" else None
    return replace(row, input=text, accumulator=rule)


def fine_tune(this: Run) -> None:
    """Train, and score the float network, or the soft one at the end of its schedule."""
    if not this.method.trains:
        return
    stage = "binary" if this.method.binary else "float"
    if this.quantizer and this.quantizer.activation and this.recipe.train.activation_epochs:
        activations_first(this)
    train(this, stage, this.recipe.train)
    if this.quantizer:
        with this.quantizer.hardened(False):
            this.accuracy["soft"] = this.score(this.net)
    elif this.recipe.train.epochs or "float" not in this.accuracy:
        this.accuracy["float"] = this.score(this.net)


def activations_first(this: Run) -> None:
    """The first of two stages: binary inputs, float weights. They stay as they end, for the second stage."""
    this.quantizer.idle = True
    epochs = this.recipe.train.activation_epochs
    train(this, "activations", this.recipe.train.model_copy(update={"epochs": epochs}))
    this.quantizer.idle, this.quantizer.hard = False, False
    this.quantizer.activation.settled = True
    this.quantizer.move_to(0.0)


def train(this: Run, stage: str, rule: Train) -> None:
    """One stage of training, logged; the network is left at its best epoch."""
    trainer = Trainer(
        this.net,
        stage=stage,
        quantizer=this.quantizer,
        batches=this.train,
        objective=Objective(this.recipe.distill, this.teacher, rule.smoothing),
        train=rule,
        classes=this.model.num_classes,
        device=this.device,
        score=this.score,
        folder=this.folder.state(stage),
        stop=this.stop,
        save_minutes=this.job.save_minutes,
        compile=this.job.compile,
    )
    before = this.rows
    rows = trainer.run(this.resumed, lambda rows: write_log(this.folder, before + rows))
    this.rows = before + rows


def write_log(folder: RunFolder, rows: list[EpochRow]) -> None:
    if ranks.is_rank0():
        write_text(folder.log, as_csv(rows))


def make_hard(this: Run) -> None:
    """Signs for latents, BatchNorm re-estimated where that helps, the rest rounded to what the file holds."""
    if this.quantizer:
        this.quantizer.hard = True
    if this.held_out is not None and this.quantizer:  # of few images a rank may have no batch
        batches = this.train.epoch(0)
        this.batchnorm = reestimate_if_better(this.net, batches, this.device, this.score_held_out)
        say(str(this.batchnorm))
    harden(this.net, getattr(torch, this.recipe.pack.float_dtype))
    if this.quantizer:
        for module in this.net.modules():
            if isinstance(module, FloatAccumulator):
                module.count_anew()
        this.accuracy["hard"] = this.score(this.net)
        this.table = [with_overflow(this, row) for row in this.table]


def with_overflow(this: Run, row: Layer) -> Layer:
    """The row of a layer with an int8 accumulator, and the share of its sums that overflowed in scoring."""
    if row.accumulator is None:
        return row
    counter = this.net.get_submodule(row.name).accumulator
    counts = torch.tensor([counter.overflows, counter.count], dtype=torch.float64, device=this.device)
    overflows, sums = ranks.reduce_sum(counts).tolist()
    return replace(row, accumulator={**row.accumulator, "overflowed": round(overflows / sums, 8)})


def ship(this: Run) -> tuple[PackedFile, Agreement]:
    """Write the file, load it back, hold its logits against the network's, and score it."""
    tensors = packed_tensors(this.net)
    facts = provenance(this.model, this.recipe, this.device, this.steps())
    document = packed_document(this.model, this.recipe, this.table, this.dataset, facts)
    ranks.broadcast_from_rank0(lambda: write(this.folder.packed, document, tensors))
    loaded = place(rebuild(read(this.folder.packed)), this.device)
    agreement = ranks.broadcast_from_rank0(lambda: compare(this.net, loaded, some_images(this)))
    this.accuracy["packed"] = this.score(loaded)
    document["accuracy"] = this.accuracy["packed"].to_json(speed=False)
    ranks.broadcast_from_rank0(
        lambda: write(this.folder.packed, document, tensors)
    )  # the same tensors, with the accuracy they scored
    return read(this.folder.packed), agreement


def some_images(this: Run) -> torch.Tensor:
    """A batch of validation images; the first rank has one, however few there are."""
    images, _ = next(iter(this.val))
    return images.to(this.device)


def report(this: Run, file: PackedFile, agreement: Agreement) -> dict:
    """report.html, and last report.json: a run folder that has it is a finished run."""
    document = report_document(
        command=this.job.command,
        file=file,
        account=contents(file),
        dataset=this.dataset,
        train_images=len(this.train.split),
        accuracy=this.accuracy,
        agreement=agreement,
        batchnorm=this.batchnorm,
        rows=this.rows,
        seconds=time.perf_counter() - this.started,
    )
    if ranks.is_rank0():
        write_text(this.folder.page, render(document))
        write_text(this.folder.report, json.dumps(document, indent=1) + "\n")
    show(accuracy_table(document["accuracy"]))
    return document
