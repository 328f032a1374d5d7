"""Where the documentation, the package and the stored results lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "binarize_cli"
RESULTS = ROOT / "docs" / "results"
