"""How many kernels a training step asks a GPU for, counted on a pretended one.

`uv run python tests/launches.py` writes the table of docs/cuda.md, which `test_cuda.py` holds the code to.
"""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "cuda.md"
TABLE = re.compile(r"(<!-- launches -->\n).*?(\n<!-- end of launches -->)", re.DOTALL)
MODELS = {"resnet20": 512, "deit_tiny": 256}
"""The models of the table, and images a step."""
KINDS = ("float", "bw soft", "bw hard", "bwa soft", "bwa hard", "bwaa soft", "bwaa hard")
STEPS, HARDEN, HARDEN_INPUTS = 100, 0.5, 1.0
SOFT, HARD = 40, 90  # steps in the middle of each phase


def count(model: str, kind: str, batch_size: int, amp: str = "auto"):
    """Return the pretended GPU after one step of a training: `float`, or a task and `soft` or `hard`."""
    import torch
    from pretended_cuda import CUDA, pretended_cuda

    from binarize_cli.binarize.prepare import make_binary, rewrite_and_choose
    from binarize_cli.device import place
    from binarize_cli.models.heads import head_names
    from binarize_cli.models.load import load
    from binarize_cli.models.names import resolve
    from binarize_cli.recipe import Distill, Recipe, Train
    from binarize_cli.training.objective import Objective
    from binarize_cli.training.phases import PhasePlan
    from binarize_cli.training.step import Step

    task, _, phase = kind.partition(" ")
    torch.manual_seed(0)
    float_model = load(resolve(model), pretrained=False)
    net, binary, size = float_model.net, None, float_model.preprocessing.input_size
    recipe = Recipe(method="bnn++", task="bw" if task == "float" else task, train=Train(amp=amp))
    if task != "float":
        net, table = rewrite_and_choose(net, torch.zeros(2, *size), recipe, head_names(net))
        binary = make_binary(net, table, recipe, [torch.randn(2, *size)])
        net = binary.net
    with pretended_cuda(computes=False) as gpu:
        step = Step(
            place(net, CUDA).train(),
            binary=binary,
            phases=PhasePlan("binary" if binary else "float", STEPS, HARDEN, HARDEN_INPUTS),
            objective=Objective(Distill(), None, 0.0),
            train=recipe.train,
            classes=float_model.num_classes,
            device=CUDA,
        )
        images = torch.zeros(batch_size, *size, device=CUDA)
        targets = torch.zeros(batch_size, dtype=torch.long, device=CUDA)
        number = HARD if phase == "hard" else SOFT
        step.take([(images, targets)], number - 1, list, str)  # the first makes the optimizer's moments
        gpu.forget()
        step.take([(images, targets)], number, list, str)
    return gpu


def table(counted: dict[tuple[str, str], int]) -> str:
    """Return the table in Markdown: a row a kind, a model's launches and their ratio to float."""
    heads = [f"`{model}`, {batch_size} images" for model, batch_size in MODELS.items()]
    heads = ["step, PyTorch {}.{}".format(*pytorch()), *(f"{head} | x float" for head in heads)]
    lines = [f"| {' | '.join(heads)} |"]
    lines.append("|---|" + "---:|" * 2 * len(MODELS))
    for kind in KINDS:
        cells = [
            f"{counted[model, kind]} | {counted[model, kind] / counted[model, 'float']:.2f}"
            for model in MODELS
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pytorch() -> tuple[int, int]:
    """Return the version of PyTorch that is here, such as (2, 15)."""
    import torch

    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def counted_with() -> tuple[int, int]:
    """Return the version of PyTorch that the page's table was counted with."""
    major, minor = re.search(r"\| step, PyTorch (\d+)\.(\d+) \|", PAGE.read_text(encoding="utf-8")).groups()
    return int(major), int(minor)


def documented() -> dict[tuple[str, str], int]:
    """Return the launches by (model, kind) as the page has them."""
    rows = TABLE.search(PAGE.read_text(encoding="utf-8"))[0].splitlines()[3:-1]
    found = {}
    for row in rows:
        kind, *cells = (cell.strip() for cell in row.strip("| ").split("|"))
        for model, launches in zip(MODELS, cells[::2], strict=True):
            found[model, kind] = int(launches)
    return found


if __name__ == "__main__":
    counted = {}
    for model, batch_size in MODELS.items():
        for kind in KINDS:
            gpu = count(model, kind, batch_size)
            counted[model, kind] = sum(gpu.launches.values())
            print(model, kind, counted[model, kind], dict(gpu.waits), flush=True)
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda m: m[1] + table(counted) + m[2], text), encoding="utf-8")
