"""The names that timm and torchvision know, read from their source text: importing them would take seconds.

The regular expressions follow how the two libraries write their registrations; `tests/test_models.py` holds
every list against what the imported library says.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path


@cache
def timm_names() -> frozenset[str]:
    """Return the architectures of the installed timm: what timm.list_models() says."""
    return frozenset(re.findall(r"@register_model\s+def (\w+)", _source("timm")))


@cache
def timm_tags() -> dict[str, list[str]]:
    """Architecture -> its pretrained tags, in timm's order; those that timm makes up in code are missing."""
    entries = re.findall(
        r"""^\s+['"](\w+)\.([\w.\-]+)\*?['"]\s*:\s*(?:\w*cfg\w*\(|\{|dict\()""", _source("timm"), re.M
    )
    tags: dict[str, list[str]] = {}
    for architecture, tag in entries:
        if architecture in timm_names():
            tags.setdefault(architecture, []).append(tag)
    return tags


@cache
def timm_renamed() -> dict[str, str]:
    """Deprecated name -> the name, often with a tag, that timm maps it to."""
    tables = re.findall(
        r"register_model_deprecations\(__name__, \{(.*?)\n\s*\}\)", _source("timm"), re.DOTALL
    )
    return dict(re.findall(r"""['"](\w+)['"]\s*:\s*['"]([\w.\-]+)['"]""", "\n".join(tables)))


@cache
def torchvision_names() -> frozenset[str]:
    """Return the classification models of the installed torchvision: list_models(torchvision.models)."""
    decorated = r"@register_model\([^)]*\)\s+(?:@.*(?:\n .*|\n\))*\n)*def (\w+)"
    return frozenset(re.findall(decorated, _source("torchvision")))


@cache
def _source(package: str) -> str:
    """Return the text of all modules in `package`/models; finding a top-level package does not import it."""
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations, f"{package} is a dependency"
    folder = Path(spec.submodule_search_locations[0]) / "models"
    return "\n".join(module.read_text(encoding="utf-8") for module in sorted(folder.glob("*.py")))
