"""The tree of the package."""

from __future__ import annotations

import ast
from pathlib import Path

from generated.markdown import sentence
from generated.places import PACKAGE

ROOMS = ("cli", "bench", "models", "data", "binarize", "training", "packed", "export", "report", "quantizers")


def tree() -> str:
    """Return the rooms and files of the package with the first sentence of each docstring."""
    ground = [file for file in sorted(PACKAGE.glob("*.py")) if file.name != "__main__.py"]
    rooms = [file.parent for file in PACKAGE.rglob("__init__.py") if file.parent != PACKAGE]
    rooms.sort(key=lambda room: (ROOMS.index(room.name) if room.name in ROOMS else len(ROOMS), room.name))
    lines = [f"- `{file.name}`: {_doc(file)}" for file in ground if file.name != "__init__.py"]
    for room in rooms:
        lines.append(f"- **`{room.relative_to(PACKAGE)}/`**: {_doc(room / '__init__.py')}")
        files = (file for file in sorted(room.glob("*.py")) if file.name != "__init__.py")
        lines += [f"  - `{file.name}`: {_doc(file)}" for file in files]
    return "\n".join(lines)


def _doc(file: Path) -> str:
    return sentence(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "")
