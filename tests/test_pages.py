"""The pages in a browser: no text leaves its box, none lies over another, and the console stays silent."""

from __future__ import annotations

import pytest
from browser import WIDTHS, browser, look
from test_comparison import a_result
from test_report import a_document, many_confusions

from binarize_cli.report.compare_page import render_comparison
from binarize_cli.report.comparison import Run, compare_runs
from binarize_cli.report.html import render

pytestmark = pytest.mark.skipif(browser() is None, reason="no Chromium is installed (apt install chromium)")

HOSTILE = "<img src=x onerror=\"console.error('ran')\"></pre><script>console.error('ran')</script>"


def hostile() -> dict:
    """Return a document whose every name is markup, and long."""
    document = a_document([HOSTILE, "W" * 60, "c"], blocks=3, epochs=1, command=f"bnnpp binarize {HOSTILE}")
    document["data"]["name"] = document["model"]["name"] = HOSTILE
    document["layers"][1]["name"] = HOSTILE
    document["provenance"]["weights"] = "/" + "a" * 300
    return document


def thousand() -> dict:
    return a_document([f"class {i}" for i in range(1000)], epochs=2) | {"confusion": many_confusions(1000)}


PAGES = {
    "a run": lambda: render(a_document([str(i) for i in range(10)])),
    "names with markup": lambda: render(hostile()),
    "a thousand classes": lambda: render(thousand()),
    "tiny tiles": lambda: render(tiny_tiles()),
    "nothing trained": lambda: render(untrained()),
    "a comparison of twelve rows": lambda: render_comparison(comparison(12)),
    "a comparison of one run": lambda: render_comparison(comparison(1)),
}


def untrained() -> dict:
    scores = a_document(["a", "b", "c"])["accuracy"]
    changes = {"accuracy": {**scores, "float": None, "soft": None}, "epochs": [], "packed_epoch": None}
    return a_document(["a", "b", "c"], method="ptq") | changes


def tiny_tiles() -> dict:
    """Return a document with layers of every size down to a few bytes, none like another."""
    document = a_document(["a", "b", "c"], blocks=1)
    row, names = document["layers"][1], "abcdefghijklmnopqrst"
    document["layers"] = [row | {"name": f"layer_{n}", "bytes": 3 * 2**i} for i, n in enumerate(names)]
    return document


def comparison(rows: int) -> dict:
    """Return rows of three seeds, the last with a name that is markup; one row has one run."""
    runs = []
    for place in range(rows):
        label = HOSTILE if place == 11 else f"paper/binary-activations/method-{place}"
        for seed in range(1 if rows == 1 else 3):
            result = a_result(seed=seed, top1=60 + 3 * place + seed, task=("bw", "bwa", "bwaa")[place % 3])
            runs.append(Run(result | {"bytes": 10**6 + place // 4}, f"run {place}/report.html", label))
    return compare_runs(runs)


@pytest.mark.parametrize("name", PAGES)
def test_nothing_leaves_its_box_at_both_widths(name):
    page = PAGES[name]()
    for width in WIDTHS:
        seen = look(page, width)
        assert seen.height > 500, "it was drawn"
        assert not seen.faults, width
        assert not seen.console, width


def test_a_browser_sees_what_is_too_wide():
    page = "<!doctype html><p style='width:50px;white-space:nowrap'>much too long for it</p>"
    page += "<svg class='chart' width=100><text x=90 y=20>outside</text></svg>"
    page += "<script>console.error('no')</script>"
    seen = look(page, 400)
    assert any("wider than its box" in fault for fault in seen.faults)
    assert any("outside its picture" in fault for fault in seen.faults)
    assert seen.console
