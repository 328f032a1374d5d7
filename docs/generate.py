"""Write the generated parts of the documentation: `uv run python docs/generate.py`.

A page is written by hand but for its blocks, which stand between two comments:

    <!-- generated: NAME -->
    <!-- end -->

BLOCKS says what each name stands for, and docs/generated/ makes it. `tests/test_docs.py` checks that the
pages of the repository are what this writes, and that every page is read and linked.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from generated import (
    analyses,
    commands,
    exports,
    families,
    goals,
    methods,
    recipes,
    results,
    rooms,
    search,
    session,
    speed,
    training,
)
from generated.places import ROOT

from binarize_cli.errors import InputError

BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

BLOCKS: Mapping[str, Callable[[], str]] = {
    "analyses": analyses.analyses,
    "commands": commands.commands,
    "exit-codes": commands.exit_codes,
    "exports": exports.exports,
    "exports-held": exports.exports_held,
    "families": families.families,
    "goals": goals.goals,
    "goals-tried": goals.tried,
    "lead": results.lead,
    "method-cards": methods.cards,
    "method-table": methods.method_table,
    "recipe-keys": recipes.recipe_keys,
    "recipe-list": recipes.recipe_list,
    "results": results.results,
    "results-summary": results.results_summary,
    "session": session.session,
    "speed": speed.speed,
    "training": training.training,
    "tree": rooms.tree,
    **search.blocks(),
}

PLOTS: Mapping[str, Callable[[], str]] = {"speed.svg": speed.speed_plot}
"""Pictures of docs/, which are written anew with the pages."""

KEPT: Mapping[str, tuple[Callable[[list[Path]], None], str]] = {
    "store": (results.store, "the results of the runs in these folders"),
    "session": (session.store_session, "what the session of the front page prints, run in this empty folder"),
    "speed": (speed.store_speed, "what bench score --json said"),
    "training": (training.store_training, "what bench train --json said"),
    "families": (families.store_families, "outcomes of tests/families.py"),
    "exports": (exports.store_exports, "tables of tests/exports.py"),
    "analyses": (analyses.store_analyses, "what tests/analyses.py found"),
}
"""By flag: what keeps files in docs/results, and what they hold."""


def pages() -> list[Path]:
    """Return the pages of the documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def rewritten(text: str) -> str:
    """Return a page with its blocks generated anew. Raises KeyError for a block that is not known."""
    return BLOCK.sub(lambda block: f"{block[1]}{BLOCKS[block[2]]()}\n{block[3]}", text)


def main() -> None:
    """Write the pages that are out of date, and print their names."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    for flag, (_, what) in KEPT.items():
        parser.add_argument(f"--{flag}", type=Path, metavar="PATH", nargs="+", help=f"first keep {what}")
    flags = vars(parser.parse_args())
    try:
        for flag, (keep, _) in KEPT.items():
            if flags[flag]:
                keep(flags[flag])
    except InputError as error:
        parser.error(str(error))
    for name, draw in PLOTS.items():
        (ROOT / "docs" / name).write_text(draw(), encoding="utf-8")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = rewritten(text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
