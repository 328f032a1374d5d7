"""The whole story of `bnnpp binarize`: `run_pipeline` reads from top to bottom."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from contextlib import ExitStack
from dataclasses import replace

import torch

from binarize_cli import ranks
from binarize_cli.binarize.batchnorm import has_batchnorm, reestimate, reestimate_if_better
from binarize_cli.binarize.calibrate import IMAGES
from binarize_cli.binarize.convert import harden
from binarize_cli.binarize.distributions import input_distributions, latent_distributions
from binarize_cli.binarize.float_accumulator import FloatAccumulator
from binarize_cli.binarize.prepare import make_binary
from binarize_cli.binarize.rounding import round_floats
from binarize_cli.binarize.select import Layer
from binarize_cli.console import say, show, warn
from binarize_cli.device import place, precision
from binarize_cli.errors import BnnppError, counted
from binarize_cli.files import write_text
from binarize_cli.job import Job
from binarize_cli.models.classes import described
from binarize_cli.models.load import FloatModel
from binarize_cli.packed.agreement import Agreement, compare_logits
from binarize_cli.packed.contents import contents
from binarize_cli.packed.document import packed_document, provenance
from binarize_cli.packed.export import packed_tensors
from binarize_cli.packed.format import PackedFile, read, write
from binarize_cli.packed.runtime import rebuild
from binarize_cli.recipe import Train
from binarize_cli.report.card import render_card
from binarize_cli.report.changed import changed_images
from binarize_cli.report.document import report_document
from binarize_cli.report.html import render
from binarize_cli.report.results import as_json
from binarize_cli.report.tables import accuracy_table, layers_table
from binarize_cli.run_folder import RunFolder, check_same_run, choose_run, read_report
from binarize_cli.setup import Run, set_up
from binarize_cli.training.log import EpochRow, as_csv
from binarize_cli.training.loop import Saving, Trainer
from binarize_cli.training.objective import Objective
from binarize_cli.training.phases import Stage
from binarize_cli.training.stop import StopRequest
from binarize_cli.training.teacher import LogitCache, Teacher


def run_pipeline(job: Job, stop: StopRequest) -> tuple[RunFolder, dict]:
    """Binarize, fine-tune, pack, and score the packed file. Returns the run folder and the report's document.

    Raises InputError before anything is written; Diverged and Interrupted, with the state kept.
    """
    ranks.start()
    choice = ranks.broadcast_from_rank0(
        lambda: choose_run(job.run_name, job.output, job.resume, job.overwrite, job.command)
    )
    if choice.finished:
        return finished_before(choice.folder)
    with ExitStack() as held:
        with ranks.raise_on_all_ranks():
            run = set_up(job, choice, stop)
        run.folder = ranks.broadcast_from_rank0(lambda: held.enter_context(choice.claimed()))
        ranks.broadcast_from_rank0(lambda: begin(run))
        float_reference(run)
        make_network_binary(run)
        fine_tune(run)
        make_hard(run)
        file, agreement = ship(run)
        document = report(run, file, agreement)
    ranks.barrier()  # whoever reads the folder next finds all of it
    return run.folder, document


def finished_before(folder: RunFolder) -> tuple[RunFolder, dict]:
    """Return the report of a run that already finished: its job may have been queued again."""
    say(f"{folder.path} holds the finished run")
    return folder, read_report(folder)


def begin(run: Run) -> None:
    """Say what will happen, and make the run folder. Raises InputError on resuming what was another run."""
    if run.recipe.task == "bw" or not run.method.binary:
        show(layers_table([row.to_json() for row in run.table]))
    say(f"{run.model.name}: {run.model.weights}; head {run.head}; {run.dataset.summary}; on {where(run)}")
    identity = {
        "model": model_key(run.model),
        "weights": run.model.weights_sha256,
        "input_size": list(run.model.preprocessing.input_size),
        "dataset": run.dataset.fingerprint,
        "recipe": run.recipe.model_dump(mode="json"),
    }
    if run.job.head != "auto":
        identity["head"] = run.job.head
    if run.teacher_model:
        identity["teacher"] = run.teacher_model.weights_sha256
    if run.resumed:
        check_same_run(run.folder, identity)
    else:
        run.folder.clear()
        write_text(run.folder.log, as_csv([]))
        write_text(run.folder.recipe, run.recipe.as_yaml())
        write_text(run.folder.command, run.job.command + "\n")
        write_text(run.folder.identity, json.dumps(identity, indent=1))


def model_key(model: FloatModel) -> str:
    return f"{model.source}/{model.name}"


def where(run: Run) -> str:
    """Return the device, the precision where it is not float32, and how a batch is shared out."""
    kind = precision(run.recipe.train.amp, run.device)
    device = str(run.device) if kind == "float32" else f"{run.device} in {kind}"
    cut = " that share the model" if run.job.parallel == "fsdp" else ""
    parts = [f"{ranks.world()} ranks{cut}"] * (ranks.world() > 1)
    parts += [f"{run.batches.train.accumulate} micro-batches a step"] * (run.batches.train.accumulate > 1)
    each = f", {run.batches.train.micro_batch} images each" if parts else ""
    return ", ".join([device, *parts]) + each


def float_reference(run: Run) -> None:
    """Score the float model, after fitting a head that had to be replaced; then choose the teacher."""
    if not run.model.pretrained:
        say(
            "from scratch: there is no float model to compare with" + (" or to learn from" * own_teacher(run))
        )
    elif run.head == "replaced" and not run.method.binary:
        return  # the run itself is the float fine-tuning
    else:
        if run.head == "replaced":
            fit_head(run)
        run.accuracy["float"] = run.score(run.net)
        say(f"float top-1 {run.accuracy['float'].top1:.2f}")
    choose_teacher(run)


def fit_head(run: Run) -> None:
    """Fine-tune the float network, whose head is new."""
    epochs = run.recipe.train.float_epochs
    say(f"the head is new: {counted(epochs, 'epoch')} of float fine-tuning first (train.float_epochs)")
    train_stage(run, "float", run.recipe.train.model_copy(update={"epochs": epochs}))


def own_teacher(run: Run) -> bool:
    """Return whether the float network itself is to teach."""
    return run.teacher_model is None


def choose_teacher(run: Run) -> None:
    """Make the teacher: a copy of the float network, or the recipe's own, whose score is said."""
    distill = run.recipe.distill
    teaches = bool((distill.weight or distill.blocks) and run.method.binary)
    if run.model.pretrained and ((teaches and own_teacher(run)) or run.job.show_images):
        run.float_net = copy.deepcopy(run.net)
    net = run.float_net
    if teaches and run.teacher_model:
        net = place(run.teacher_model.net, run.device)
        say(
            f"teacher {run.teacher_model.name} ({run.teacher_model.weights}), top-1 {run.score(net).top1:.2f}"
        )
    if teaches and net:
        compile = run.job.compile is not None and not distill.blocks  # whose outputs hooks look at
        run.teacher = Teacher(net, logit_cache(run, net), compile)


def logit_cache(run: Run, teacher: torch.nn.Module) -> LogitCache | None:
    """Return the cache of the teacher's logits, by what they depend on: its weights and the images it sees.

    They are those of whole batches: if batches are shared out over ranks or micro-batches, none are cached.
    """
    needed = run.recipe.distill.blocks  # the distance of blocks needs the teacher itself
    if run.job.teacher_logits is None or needed or run.batches.train.parts > 1:
        return None
    train = run.recipe.train
    views = ("seed", "batch_size", "mixup", "cutmix", "amp", "reestimate_batchnorm", "hold_out")
    weights = b"".join(t.cpu().numpy().tobytes() for t in teacher.state_dict().values())
    facts = {
        "weights": hashlib.sha256(weights).hexdigest(),
        "model": model_key(run.teacher_model or run.model),
        "images": [
            run.dataset.fingerprint,
            len(run.batches.train.split),
            list(run.model.preprocessing.input_size),
        ],
        "augment": run.recipe.augment.model_dump(mode="json"),
        "train": {name: getattr(train, name) for name in views},
        "device": run.device.type,
    }
    return LogitCache(run.job.teacher_logits, facts, len(run.batches.train))


def make_network_binary(run: Run) -> None:
    """Put binary layers in the place of those that the table names; in bwa and bwaa with binary inputs."""
    if not run.method.binary:
        return
    images = calibration_images(run) if run.recipe.task != "bw" else []
    if images and not run.model.pretrained and has_batchnorm(run.net):
        # With a fresh network's statistics inputs shrink layer by layer, and the scales found with them.
        reestimate(run.net, [(batch, None) for batch in images], run.device)
    run.binary = make_binary(run.net, run.table, run.recipe, images)
    run.net, run.table = run.binary.net, run.binary.table
    if images:
        show(layers_table([row.to_json() for row in run.table]))
    if run.binary.constant_inputs:
        names, seen = run.binary.constant_inputs, sum(map(len, images))
        warn(
            f"{len(names)} layers see a constant: over {seen} calibration images all inputs of "
            f"{', '.join(names)} have the same sign. Set activation.threshold to learned."
        )
    if run.teacher and run.recipe.distill.blocks:
        run.teacher.observe_blocks(run.net)


def calibration_images(run: Run) -> list[torch.Tensor]:
    """Return the first batches of training images, the same on every rank."""
    images: list[torch.Tensor] = []
    for inputs, _ in run.batches.train.epoch(0, all_parts=True):
        images.append(inputs.to(run.device))
        if sum(map(len, images)) >= IMAGES:
            break
    return images


def fine_tune(run: Run) -> None:
    """Train, and score the float network, or the soft one: that of the packed epoch, as it was trained."""
    if not run.method.trains:
        return
    train, frozen = run.recipe.train, False
    if run.binary and run.binary.activations and train.activation_epochs:
        train_stage(run, "activations", train.model_copy(update={"epochs": train.activation_epochs}))
        frozen = True
    train_stage(run, "binary" if run.binary else "float", train, inputs_frozen=frozen)
    if run.binary:
        run.accuracy["soft"] = run.score(run.net)
    elif train.epochs or "float" not in run.accuracy:
        run.accuracy["float"] = run.score(run.net)


def train_stage(run: Run, stage: Stage, train: Train, inputs_frozen: bool = False) -> None:
    """Train one stage, logged; the network is left at the epoch that `train.select` says."""
    trainer = Trainer(
        run.net,
        stage=stage,
        binary=run.binary,
        inputs_frozen=inputs_frozen,
        batches=run.batches.train,
        objective=Objective(run.recipe.distill, run.teacher, train.smoothing),
        train=train,
        classes=run.model.num_classes,
        device=run.device,
        score=run.score,
        score_held_out=run.score_held_out if run.batches.held_out else None,
        saving=Saving(run.folder.state(stage), run.stop, run.job.save_minutes),
        compile=run.job.compile,
        parallel=run.job.parallel,
    )
    before = run.rows
    rows = trainer.run(run.resumed, lambda rows: write_log(run.folder, before + rows))
    run.rows, run.packed_epoch = before + rows, trainer.position.packed_epoch
    if run.packed_epoch == 0 and train.epochs:
        warn(
            f"train.select {train.select}: no epoch is better than the network before training, which is kept"
        )


def write_log(folder: RunFolder, rows: list[EpochRow]) -> None:
    if ranks.is_rank0():
        write_text(folder.log, as_csv(rows))


def make_hard(run: Run) -> None:
    """Signs for latents, BatchNorm re-estimated where that helps; then the rest as the file will hold it.

    The hard network is scored before the rest is rounded, the packed file after: the report has both.
    """
    if run.binary:
        run.binary.enter(run.binary.phase.hardened())
    if run.reestimates and run.binary:  # of few images a rank may have no batch
        batches = run.batches.train.epoch(0)
        run.batchnorm = reestimate_if_better(run.net, batches, run.device, run.score_held_out)
        say(str(run.batchnorm))
    run.latents = latent_distributions(run.net)
    harden(run.net)
    if run.binary:
        for module in run.net.modules():
            if isinstance(module, FloatAccumulator):
                module.count_anew()
        run.accuracy["hard"] = run.score(run.net)
        run.table = [with_overflow(run, row) for row in run.table]
    round_floats(run.net, run.recipe.pack.float_dtype)


def with_overflow(run: Run, row: Layer) -> Layer:
    """Add to the row of a layer with an int8 accumulator the share of its sums that overflowed in scoring."""
    if row.accumulator is None:
        return row
    counter = run.net.get_submodule(f"{row.name}.accumulator")
    assert isinstance(counter, FloatAccumulator)
    counts = torch.tensor([counter.overflows, counter.count], dtype=torch.float64, device=run.device)
    overflows, sums = ranks.reduce_sum(counts).tolist()
    return replace(row, accumulator={**row.accumulator, "overflowed": round(overflows / sums, 8)})


def ship(run: Run) -> tuple[PackedFile, Agreement]:
    """Write the file, load it back, hold its logits against the network's, and score it.

    With binary inputs a rounding of the device may turn signs, and many after them: such a file is kept,
    since training took hours, and told of. Raises BnnppError if the file cannot be read, or if a network
    without binary inputs computes something else; then the file is removed, and the state is left.
    """
    tensors = packed_tensors(run.net, run.recipe.pack.float_dtype)
    facts = provenance(run.model, run.recipe, run.device, run.steps())
    document = packed_document(run.model, run.recipe, run.table, run.dataset, facts)
    ranks.broadcast_from_rank0(lambda: write(run.folder.packed, document, tensors))
    try:
        loaded = place(rebuild(read(run.folder.packed)), run.device)
        agreement = ranks.broadcast_from_rank0(lambda: checked(run, loaded))
    except BnnppError:
        run.folder.packed.unlink(missing_ok=True)
        raise
    run.accuracy["packed"] = run.score(loaded)
    run.inputs = ranks.broadcast_from_rank0(lambda: input_distributions(run.net, some_images(run)))
    warn_of_dead_layers(run)
    if run.job.show_images and run.float_net:
        run.changed = ranks.broadcast_from_rank0(lambda: changed(run, loaded))
    scored = document.scored(run.accuracy["packed"].to_json(speed=False))
    ranks.broadcast_from_rank0(lambda: write(run.folder.packed, scored, tensors))
    return read(run.folder.packed), agreement


def warn_of_dead_layers(run: Run) -> None:
    """Name the layers that see little of an image: most channels of their inputs never change sign."""
    dead = [row["name"] for row in run.inputs if row["constant"] > 0.5]
    if dead:
        warn(
            f"binary inputs that tell little: in {', '.join(dead)} more than half of the channels have the "
            "same sign all over a batch of validation images"
        )


def checked(run: Run, loaded: torch.nn.Module) -> Agreement:
    """Return how far the loaded file agrees with the network. Raises BnnppError, or warns, if it does not."""
    binary_inputs = run.recipe.task != "bw"
    agreement = compare_logits(run.net, loaded, some_images(run), binary_inputs)
    if not agreement.agrees and not binary_inputs:
        raise BnnppError(f"{agreement}: this is a fault of bnnpp", where=str(run.folder.packed))
    if not agreement.agrees:
        warn(f"{agreement}: this is a fault of bnnpp. The file is kept, and its accuracy is its own.")
    return agreement


def changed(run: Run, loaded: torch.nn.Module) -> list[dict[str, str]]:
    """Return images whose answer changed, among those that this rank scores."""
    classes, preprocessing = described(run.dataset.classes), run.model.preprocessing
    assert run.float_net, "kept when images are to be shown"
    return changed_images(run.float_net, loaded, run.batches.val, classes, preprocessing, run.device)


def some_images(run: Run) -> torch.Tensor:
    """Return a batch of validation images; the first rank has one, however few there are."""
    images, _ = next(iter(run.batches.val))
    return images.to(run.device)


def report(run: Run, file: PackedFile, agreement: Agreement) -> dict:
    """Write report.html, README.md, and last report.json: a run folder that has it is a finished run."""
    document = report_document(
        command=run.job.command,
        file=file,
        account=contents(file),
        dataset=run.dataset,
        train_images=len(run.batches.train.split),
        accuracy=run.accuracy,
        agreement=agreement,
        batchnorm=run.batchnorm,
        rows=run.rows,
        packed_epoch=run.packed_epoch,
        seconds=time.perf_counter() - run.started,
        latents=run.latents,
        inputs=run.inputs,
        changed=run.changed,
    )
    if ranks.is_rank0():
        write_text(run.folder.page, render(document))
        write_text(run.folder.card, render_card(document))
        write_text(run.folder.report, as_json(document))
    show(accuracy_table(document["accuracy"]))
    return document
