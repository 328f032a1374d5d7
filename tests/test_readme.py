"""The README is true: its commands run, its tree is the tree, and its options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from binarize_cli.quantizers.methods import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def fences(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in fences("sh") for line in block.splitlines()]


COMMAND_NAMES = ("binarize", "eval", "inspect", "methods", "compare", "theory", "bench")


def test_the_two_commands_come_first_and_all_go_through_uv():
    assert COMMANDS[:2] == ["uv run bnnpp binarize digits_vit --method bnn++", "uv run pytest"]
    assert all(line.startswith(("uv run bnnpp ", "uv run pytest")) for line in COMMANDS)


@pytest.mark.parametrize(
    "line", [line for line in COMMANDS if "bnnpp " in line and "binarize digits" not in line]
)
def test_a_command_of_the_readme_runs(line, bnnpp, monkeypatch):
    monkeypatch.chdir(ROOT)
    outcome = bnnpp(*shlex.split(line.removeprefix("uv run bnnpp ")))
    assert outcome.code == 0 and outcome.out, outcome.err


@pytest.mark.slow
def test_the_first_command_ends_within_two_points_of_the_float_model(bnnpp, empty):
    import json

    packed = bnnpp(*shlex.split(COMMANDS[0].removeprefix("uv run bnnpp "))).packed
    accuracy = json.loads((packed.parent / "report.json").read_text())["accuracy"]
    assert accuracy["packed"]["top1"] >= accuracy["float"]["top1"] - 2
    scored = bnnpp("eval", packed)
    assert f"top-1 {accuracy['packed']['top1']:.2f} " in scored.out


def test_every_flag_in_the_readme_exists(bnnpp):
    shown = " ".join(fences("sh") + fences("console"))
    shown = re.sub(r"\$ (torchrun|srun) .*? binarize ", "", shown)  # these have flags of their own
    flags = set(re.findall(r"(?<=\s)--[a-z][a-z-]+", shown))
    known = "".join(bnnpp(command, "--help").out for command in COMMAND_NAMES)
    known += bnnpp("recipes", "show", "--help").out
    assert flags and all(flag in known for flag in flags), [flag for flag in flags if flag not in known]


def test_every_method_and_every_file_is_in_the_readme():
    assert all(f"`{name}`" in README for name in METHODS)
    tree = next(block for block in fences("text") if block.startswith("binarize_cli/"))
    files = {path.name for path in (ROOT / "binarize_cli").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert not [name for name in files if name not in tree]
    named = set(re.findall(r"\b[a-z_]+\.py\b", tree)) - {"__init__.py"}
    assert named <= files
