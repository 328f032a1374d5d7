"""A page in headless Chromium: what overflows at a width, what the console says, and how it looks.

`python tests/browser.py PAGE... ` writes a picture of each page at 1280 and at 400 pixels beside it.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (1280, 400)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--log-level=0",
)
# A frame has exactly the width asked for; a window has its own smallest one.
FRAME = """<!doctype html>
<style>body{{margin:0}} iframe{{border:0;width:{width}px;height:{height}px;display:block}}</style>
<iframe srcdoc="{page}"></iframe><script>{script}</script>"""
LOOK = (Path(__file__).parent / "browser.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Look:
    """What was seen of a page at one width; the height is that before its folds are opened."""

    faults: list[str]
    console: list[str]
    height: int


def browser() -> str | None:
    """Return where a browser is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def look(page: str, width: int) -> Look:
    """Return what overflows its box, and what the console says, with every fold of the page open."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        seen = _run(page, width, 900, LOOK, Path(place), "--dump-dom")
    found = json.loads(html.unescape(seen.stdout.partition('<pre id="faults">')[2].partition("</pre>")[0]))
    console = [line for line in seen.stderr.splitlines() if re.search(r"CONSOLE", line)]
    return Look(found["faults"], console, found["height"])


def picture(page: str, width: int, file: Path, height: int | None = None, dark: bool = False) -> Path:
    """Write what the page looks like to a PNG file."""
    height = height or look(page, width).height
    more = ["--blink-settings=preferredColorScheme=0"] if dark else []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        size = f"--window-size={max(width, 500)},{height}"
        _run(page, width, height, "", Path(place), f"--screenshot={file}", size, *more)
    return file


def _run(page: str, width: int, height: int, script: str, place: Path, *flags: str):
    (place / "page.html").write_text(
        FRAME.format(width=width, height=height, page=html.escape(page), script=script), encoding="utf-8"
    )
    own = f"--user-data-dir={place / 'browser'}"
    words = [browser(), *FLAGS, own, *flags, (place / "page.html").as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        text = Path(name).read_text(encoding="utf-8")
        for each in WIDTHS:
            seen = look(text, each)
            print(name, each, seen.height, *seen.faults, *seen.console, sep="\n  ")
            picture(text, each, Path(name).with_suffix(f".{each}.png"), seen.height)
            if "--dark" in sys.argv:
                picture(text, each, Path(name).with_suffix(f".{each}.dark.png"), seen.height, dark=True)
