"""The documentation is true: its commands run, its flags exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}


def fences(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", "\n".join(PAGES.values()), flags=re.DOTALL)


COMMANDS = [line for block in fences("sh") for line in block.splitlines()]


def test_the_readme_is_a_front_page_and_names_every_other():
    assert len(README.splitlines()) <= 150
    assert not [name for name in PAGES if name != "README.md" and f"({name})" not in README]


def test_the_two_commands_come_first_and_all_go_through_uv():
    assert COMMANDS[:2] == ["uv run bnnpp binarize digits_vit --method bnn++", "uv run pytest"]
    assert all(line.startswith(("uv run bnnpp ", "uv run pytest")) for line in COMMANDS)


@pytest.mark.parametrize(
    "line",
    sorted({line for line in COMMANDS if "bnnpp " in line and "binarize digits" not in line}),
)
def test_a_command_of_the_documentation_runs(line, bnnpp, monkeypatch):
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


def test_every_flag_of_a_command_in_the_documentation_exists():
    import typer

    from binarize_cli.cli import app

    def flags_of(command) -> set[str]:
        own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        return own.union(*(flags_of(each) for each in getattr(command, "commands", {}).values()))

    lines = "\n".join(fences("sh") + fences("console")).replace("\\\n", " ").splitlines()
    shown = " ".join(
        re.split(r"\b(?:bnnpp|binarize_cli) ", line, maxsplit=1)[-1] for line in lines if "bnnpp " in line
    )
    flags = set(re.findall(r"(?<=\s)--[a-z][a-z-]+", shown))
    assert len(flags) > 20 and not flags - flags_of(typer.main.get_command(app))


def headings(text: str) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_a_page_leads_somewhere(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        target = (ROOT / name).parent / place if place else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in headings(target.read_text(encoding="utf-8")), link
