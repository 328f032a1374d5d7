"""The flags, each once, spelled as timm spells them; a command's signature picks from here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from typer.core import TyperCommand

from binarize_cli.run_folder import Resume as ResumeMode


def _in(panel: str) -> Callable[..., Any]:
    def option(*names: str, help: str, **more: Any) -> Any:
        return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)

    return option


ParallelKind = Literal["ddp", "fsdp"]
CompileMode = Literal["default", "reduce-overhead"]

model, data, train, run = _in("Model"), _in("Data"), _in("Training"), _in("Run")

Model = Annotated[
    str,
    typer.Argument(help="deit_tiny, any timm name, torchvision/NAME, digits_vit ...", metavar="MODEL"),
]
PackedFile = Annotated[Path, typer.Argument(help="A file that 'bnnpp binarize' wrote.", metavar="FILE")]
ScoredFile = Annotated[
    Path, typer.Argument(help="A packed file, or a .onnx that 'bnnpp export' wrote.", metavar="FILE")
]

Weights = Annotated[Path | None, model("--weights", help="Float weights: .safetensors, .pth, or a folder.")]
NoPretrained = Annotated[bool, model("--no-pretrained", help="Start from random weights.")]
NumClasses = Annotated[
    int | None,
    model("--num-classes", help="Classes of the weights' head, if not the model's usual.", min=1, max=2**20),
]
ImgSize = Annotated[
    int | None, model("--img-size", help="Input size, for models that take one.", min=1, max=4096)
]

Head = Annotated[
    str,
    model(
        "--head",
        help="keep all its rows, the subset of the dataset's classes, or replace it untrained. "
        "Default: auto, by the labels.",
        metavar="[auto|keep|subset|replace]",
    ),
]
Mean = Annotated[str | None, model("--mean", help="Of the input's channels, of 0 to 1.", metavar="R,G,B")]
Std = Annotated[str | None, model("--std", help="Of the input's channels.", metavar="R,G,B")]
Interpolation = Annotated[
    str | None, model("--interpolation", help="How images are resized: bilinear, bicubic, ...")
]
CropPct = Annotated[float | None, model("--crop-pct", help="Share of the resized side that is kept.")]

Method = Annotated[str | None, train("--method", help="See 'bnnpp methods'. Default: bnn++.")]
Task = Annotated[str | None, train("--task", help="bw, bwa (binary activations too), bwaa (int8 sums).")]
Tasks = Annotated[
    str | None,
    train("--tasks", help="Tasks, with commas between: bw,bwa,bwaa.", metavar="A,B,..."),
]
RecipeName = Annotated[
    str | None,
    train("--recipe", help="A recipe's name or file: see 'bnnpp recipes ls'. Default: by the task."),
]
Set = Annotated[
    list[str] | None,
    train("--set", help="Any key of the recipe: train.lr=1e-4. Repeatable.", metavar="KEY=VALUE"),
]
Epochs = Annotated[int | None, train("--epochs", help="Epochs of fine-tuning.")]
BatchSize = Annotated[int | None, train("--batch-size", "-b", help="Images a step.")]
ScoreBatchSize = Annotated[int, data("--batch-size", "-b", help="Images at a time.", min=1)]
Activations = Annotated[
    str, data("--activations", help="float, or int8: inputs of binary weights in 8 bits (task bw).")
]
Lr = Annotated[float | None, train("--lr", help="Peak learning rate.")]
Opt = Annotated[str | None, train("--opt", help="Optimizer, by timm's name.")]
Sched = Annotated[str | None, train("--sched", help="cosine, linear or constant.")]
WeightDecay = Annotated[float | None, train("--weight-decay", help="Weight decay.")]
Amp = Annotated[str | None, train("--amp", help="auto, off, bf16 or fp16.")]
Seed = Annotated[int | None, train("--seed", help="Of everything random.")]

DataDir = Annotated[Path | None, data("--data-dir", help="A folder, or a tar, of train/ and val/ or test/.")]
Dataset = Annotated[str | None, data("--dataset", help="digits, cifar10, cifar100, or timm's name.")]
Workers = Annotated[
    int | None, data("--workers", "-j", help="Loader processes. Default: by the data.", min=0, max=256)
]
CacheGb = Annotated[
    float, data("--cache-gb", help="Sets up to this size are decoded once. Default: 4.", min=0)
]
Teacher = Annotated[
    str | None,
    train("--teacher", help="A larger model of the same classes to learn from. Default: the float model."),
]
TeacherWeights = Annotated[Path | None, train("--teacher-weights", help="Its weights, as in --weights.")]
TeacherLogits = Annotated[
    Path | None,
    train("--teacher-logits", help="Folder for the teacher's logits, for runs on the same images."),
]
SkipUnreadable = Annotated[bool, data("--skip-unreadable", help="Leave out images that cannot be decoded.")]

ACTIVATIONS = ("float", "int8")
SCORED_CLASSES = ("all", "present")
ScoredClasses = Annotated[
    str,
    data(
        "--classes",
        help="Score over all classes of the file, or over those present in the dataset. Default: all.",
        metavar="[all|present]",
    ),
]

Output = Annotated[
    Path | None, run("--output", "-o", help="The run folder. Default: runs/<model>-<method>-<task>.")
]
Device = Annotated[str, run("--device", help="auto, cpu, cuda or cuda:1.")]
Resume = Annotated[
    ResumeMode | None,
    run(
        "--resume",
        help="Continue the unfinished run: always (also --resume alone), never, or auto, if the same "
        "command left one. Default: auto inside SLURM, else never.",
        metavar="[always|auto|never]",
    ),
]
SaveMinutes = Annotated[
    float, run("--save-minutes", help="Save the state that often within an epoch. Default: 10.", min=0)
]
Compile = Annotated[
    CompileMode | None,
    run(
        "--compile",
        help="Train through torch.compile, in its mode default (also --compile alone) or reduce-overhead: "
        "by CUDA graphs.",
        metavar="[default|reduce-overhead]",
    ),
]
Parallel = Annotated[
    ParallelKind,
    run(
        "--parallel",
        help="On several ranks: ddp, each has the whole model, or fsdp, each has a part of it. Default: ddp.",
        metavar="[ddp|fsdp]",
    ),
]
Deterministic = Annotated[
    bool, run("--deterministic", help="On CUDA, only kernels that give the same bits every time; slower.")
]
ShowImages = Annotated[
    bool,
    run("--show-images", help="Put images whose answer changed into the report, if their licence allows."),
]
Overwrite = Annotated[bool, run("--overwrite", help="Replace what the run folder holds.")]


def check_choice(text: str, choices: Sequence[str], flag: str) -> None:
    """Raise InputError if a flag's word is none of its choices."""
    from binarize_cli.errors import InputError, did_you_mean

    if text not in choices:
        hint = did_you_mean(text, choices, f"One of {', '.join(choices)}.")
        raise InputError(f"no choice is named '{text}'", where=flag, hint=hint)


def numbers(text: str | None, flag: str) -> list[float] | None:
    """Return the numbers of a flag that takes several. Raises InputError if a word is not a number."""
    if text is None:
        return None
    from binarize_cli.errors import InputError

    try:
        return [float(word) for word in words(text)]
    except ValueError:
        hint = f"For instance {flag} 0.5,0.5,0.5."
        raise InputError(f"'{text}' is not a list of numbers", where=flag, hint=hint) from None


def known_tasks(text: str | None) -> list[str]:
    """Return the tasks that `--tasks` names. Raises InputError on an unknown one."""
    from binarize_cli.errors import InputError, did_you_mean
    from binarize_cli.recipe import TASKS

    tasks = words(text)
    for task in tasks:
        if task not in TASKS:
            hint = did_you_mean(task, TASKS, "Known: " + ", ".join(TASKS) + ".")
            raise InputError(f"no task is named '{task}'", where="--tasks", hint=hint)
    return tasks


def words(text: str | None) -> list[str]:
    """Return the words of a flag that takes several, with commas between.

    >>> words("bc, bnn++,")
    ['bc', 'bnn++']
    """
    return [word.strip() for word in (text or "").split(",") if word.strip()]


WORD_LEFT_OUT = {"--resume": (ResumeMode, "always"), "--compile": (CompileMode, "default")}
"""Flags whose word may be left out: their words, and the one that is meant then."""


class WithWordsLeftOut(TyperCommand):
    """A command in which `--resume` alone means `--resume always`, and so on."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the words that were left out, then parse as click does."""
        for place in range(len(args), 0, -1):
            words, meant = WORD_LEFT_OUT.get(args[place - 1], (None, ""))
            if words and (args[place:] or [""])[0] not in get_args(words):
                args.insert(place, meant)
        return super().parse_args(ctx, args)


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
