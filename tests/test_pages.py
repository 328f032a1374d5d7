"""The pages in a browser: no text leaves its box, none lies over another, and the console stays silent."""

from __future__ import annotations

import pytest
from browser import WIDTHS, browser, look
from test_report import a_document, many_confusions

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
    "nothing trained": lambda: render(untrained()),
}


def untrained() -> dict:
    scores = a_document(["a", "b", "c"])["accuracy"]
    changes = {"accuracy": {**scores, "float": None, "soft": None}, "epochs": [], "best_epoch": None}
    return a_document(["a", "b", "c"], method="ptq") | changes


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
