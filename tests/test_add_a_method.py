"""A method, a map or a transform is added in one place, and everything else picks it up."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from binarize_cli.errors import InputError
from binarize_cli.quantizers import functions as q
from binarize_cli.quantizers import methods, parts
from binarize_cli.quantizers.functions import array_namespace
from binarize_cli.quantizers.method import Method
from binarize_cli.quantizers.methods import METHODS, foreign_methods
from binarize_cli.quantizers.parts import Transform
from binarize_cli.quantizers.schedules import Schedule


@pytest.fixture
def toy(monkeypatch) -> Method:
    """What a new entry of the registry would be."""
    method = Method(
        name="toy",
        title="A toy",
        forward=q.softsign,
        backward=q.softsign_slope,
        forward_formula="k x / (1 + |k x|)",
        backward_formula="k / (1 + |k x|)^2",
        update="forward-backward",
        source="nowhere",
        when="never",
        schedules={"k": Schedule(2.0, 50.0)},
    )
    monkeypatch.setitem(METHODS, "toy", method)
    return method


def test_a_new_entry_is_listed_carded_certified_and_guessed(toy, bnnpp):
    assert "toy" in {each["name"] for each in json.loads(bnnpp("methods", "--json").out)}
    card = bnnpp("methods", "toy").out
    assert "A toy" in card and "k 2 -> 50" in card and "guaranteed" in card
    assert json.loads(bnnpp("methods", "toy", "--certify", "--json").out)["T"] == "softsign"
    assert "## `toy`: A toy" in bnnpp("methods", "--markdown").out
    assert "Did you mean 'toy'?" in bnnpp("methods", "toyy").err


def test_a_new_entry_is_valid_in_recipes_and_trains(toy, bnnpp, empty, tiny):
    words = (
        "digits_resnet",
        "--no-pretrained",
        "--data-dir",
        tiny,
        "--epochs",
        1,
        "-b",
        4,
        "--method",
        "toy",
    )
    refused = bnnpp("binarize", *words, "--set", "quantizer.schedules.mu=3")
    assert refused.code == 2 and "toy has no parameter 'mu' (its parameters: k)" in refused.err
    packed = bnnpp("binarize", *words, "--set", "quantizer.schedules.k={start: 1, end: 30}").packed
    report = json.loads((packed.parent / "report.json").read_text())
    assert report["method"] == "toy" and report["agreement"]["equal"]
    page = (packed.parent / "report.html").read_text()
    assert "guaranteed" in page and "A toy" in page


def arctan(p, k):
    return array_namespace(p).arctan(k * p) * (2 / 3.141592653589793)


ARCTAN = Transform("arctan", arctan, "2/pi arctan(k p)", {"k": Schedule(2.0, 100.0)})


class Entry:
    """An entry point of another package."""

    name = "arctan"

    def load(self) -> Transform:
        return ARCTAN


def test_a_transform_of_another_package_is_found_composed_certified_and_trained(
    monkeypatch, bnnpp, empty, tiny
):
    points = {"bnnpp.transforms": [Entry()]}
    monkeypatch.setattr(parts, "entry_points", lambda group: points.get(group, []))
    words = ("pc++", "--map", "parq", "--transform", "arctan")
    assert json.loads(bnnpp("methods", *words, "--certify", "--json").out)["verdict"] == "guaranteed"
    at = json.loads(bnnpp("methods", *words, "--at", "0.2,0.4", "--progress", "0", "--json").out)
    np.testing.assert_allclose(at["B"], [2 / np.pi * 2 / (1 + (2 * x) ** 2) for x in (0.2, 0.4)])
    run = ("digits_resnet", "--no-pretrained", "--data-dir", tiny, "--epochs", 1, "-b", 4, "--method", "pc++")
    parts_set = ("--set", "quantizer.map=parq", "--set", "quantizer.transform=arctan")
    packed = bnnpp("binarize", *run, *parts_set).packed
    report = json.loads((packed.parent / "report.json").read_text())
    assert report["recipe"]["quantizer"]["transform"] == "arctan" and report["agreement"]["equal"]
    unknown = bnnpp("methods", "pc++", "--transform", "arctn")
    assert unknown.code == 2 and "Did you mean 'arctan'" in unknown.err


@dataclass(frozen=True)
class MethodEntry:
    """An entry point of another package, for a method."""

    name: str
    brings: object

    def load(self) -> object:
        if self.brings is ImportError:
            raise ImportError("no module named 'elsewhere'")
        return self.brings


def test_a_method_of_another_package_is_found_by_its_entry_point(toy, monkeypatch):
    monkeypatch.setattr(methods, "entry_points", lambda group: [MethodEntry("toy", toy)])
    assert foreign_methods() == {"toy": toy}


@pytest.mark.parametrize(
    ("name", "brings", "fault"),
    [
        ("toy", 3, "is not a method named 'toy'"),
        ("gone", ImportError, "cannot be imported"),
        ("bc", METHODS["bc"], "exists already"),
    ],
)
def test_a_faulty_method_of_another_package_is_told_with_its_entry_point(name, brings, fault, monkeypatch):
    monkeypatch.setattr(methods, "entry_points", lambda group: [MethodEntry(name, brings)])
    with pytest.raises(InputError, match=fault) as left:
        foreign_methods()
    assert name in left.value.where
