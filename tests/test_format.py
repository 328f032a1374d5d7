"""docs/format.md: the reader on the page scores packed files, and every field is explained there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel
from test_packed_trust import GOLDEN, logits

from binarize_cli.data.digits import open_digits
from binarize_cli.packed.check import OWN
from binarize_cli.packed.format import read, write
from binarize_cli.packed.recipe_defaults import RECIPE_DEFAULTS, differences, resolved
from binarize_cli.packed.schema import Document, Row
from binarize_cli.recipe import Recipe

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
READER = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
FILES = [
    "format1-digits_resnet-bw",
    "format1-digits_resnet-bwa",
    "format1-digits_resnet-bwaa",
    "format1-digits_vit-bw",
    "format1-digits_vit-bwa",
    "format1-digits_vit-bwaa",
    "format2-digits_resnet-bwaa",
    "format2-digits_vit-bw-int8",
]


@pytest.fixture(scope="module")
def network():
    """The class on the page, which knows nothing of this package."""
    lines = [line for line in READER.splitlines() if line.strip()]
    assert len(lines) <= 80 and "binarize_cli" not in READER and "torch" not in READER
    names: dict = {}
    exec(READER, names)
    return names["Network"]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    val = open_digits(None, need_train=False).val
    images = np.frombuffer(b"".join(val.items), np.uint8).reshape(-1, 8, 8, 1)
    return images, np.array(val.targets)


@pytest.mark.parametrize("name", FILES)
def test_the_reader_on_the_page_gives_the_score_of_eval(name, network, digits, tmp_path):
    old = read(GOLDEN / f"{name}.safetensors")
    write(tmp_path / "m", old.document, old.tensors)
    images, targets = digits
    found = network(tmp_path / "m").logits(images)
    top1 = 100 * float((found.argmax(1) == targets).mean())
    assert round(top1, 4) == read(tmp_path / "m").document.accuracy.top1
    np.testing.assert_allclose(found[::72], logits(tmp_path / "m").numpy(), rtol=1e-3, atol=1e-3)


def keys(model: type[BaseModel]) -> list[str]:
    """The names of the fields of a model, and of the models in it."""
    found = []
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        parts = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        found += [name, *(key for part in parts if part is not Row for key in keys(part))]
    return found


def test_every_field_and_tensor_is_on_the_page():
    own = {"bnnpp", "torch", "torchvision", "timm", "python", "device", "weights", "weights_sha256"}
    for key in {*keys(Document), *keys(Row)} - own - {"precision", "steps"}:
        assert re.search(rf"`([a-z]+)?\.?{key}`", PAGE), key
    for suffix in OWN:
        assert suffix in PAGE, suffix


def test_a_recipe_is_kept_as_its_differences_from_frozen_defaults():
    recipe = Recipe.model_validate({"method": "bc", "task": "bwa", "train": {"lr": 1.0}}).model_dump(
        mode="json"
    )
    left = differences(recipe)
    assert left["train"]["lr"] == 1.0 and "epochs" not in left["train"] and "layers" not in left
    assert resolved(left, "bc", "bwa") == recipe
    spans = {"method": "bnn++", "quantizer": {"schedules": {"mu": {"start": 1.0, "end": 2.0}}}}
    recipe = Recipe.model_validate(spans).model_dump(mode="json")
    assert resolved(differences(recipe), "bnn++", "bw") == recipe
    assert Recipe.model_validate(resolved({}, "bnn++", "bw")).train.lr == RECIPE_DEFAULTS["train"]["lr"]
