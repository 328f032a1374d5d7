"""The page, the tables and the plots, from an invented document; nothing is trained here."""

from __future__ import annotations

import html
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from binarize_cli.errors import InputError
from binarize_cli.quantizers.methods import METHODS, find_method
from binarize_cli.recipe import Recipe
from binarize_cli.report.confusion import dense, pairs, sparse
from binarize_cli.report.curves import sample
from binarize_cli.report.fold import fold, folded_name, reason
from binarize_cli.report.html import render
from binarize_cli.report.panels import row_labels
from binarize_cli.report.plots import quantizer_curves
from binarize_cli.report.results import as_json
from binarize_cli.report.speed import add_speed
from binarize_cli.report.tables import accuracy_table, layers_table, size, size_sentence, worst_table
from binarize_cli.report.treemap import squarify
from binarize_cli.training.display import fitting

BLOCK = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
SIZES = {"total": 1_162_464, "binary": 663_552, "scales": 55_296, "float": 435_860, "metadata": 7_756}


def scored(top1: float, loss: float) -> dict:
    return {"top1": top1, "top5": 99.1234, "loss": loss, "images": 360, "images_per_second": 812.5}


def epoch(number: int, stage: str = "binary") -> dict:
    rise = 1 - np.exp(-number / 6)
    return {
        "stage": stage,
        "epoch": number,
        "loss": 2.3 - 1.9 * rise if number else None,
        "soft_top1": 60 + 35 * rise,
        "soft_loss": 1.4 - 1.2 * rise,
        "hard_top1": 10 + 84 * rise,
        "hard_loss": 2.6 - 2.3 * rise,
        "lr": 5e-4,
        "parameters": {"mu": 30.0},
        "hard": False,
        "flip_ratio": 0.08 * (1 - rise) if number else None,
        "seconds": 1.4,
        "images_per_second": 950.0,
    }


def layer(name: str, bits: int = 1) -> dict:
    why = "every layer but those kept float" if bits == 1 else "neither a linear nor a convolution layer"
    return {"name": name, "kind": "linear", "shape": [576, 192], "bits": bits, "bytes": 16_128, "why": why}


def a_document(classes: list[str], blocks: int = 12, epochs: int = 30, **changes) -> dict:
    """What a run of DeiT-Tiny writes to report.json, in its order of magnitude."""
    counts = np.full((len(classes), len(classes)), 0)
    np.fill_diagonal(counts, 34)
    counts[0, -1] = counts[2, 1] = 2
    method = changes.get("method", "bnn++")
    return {
        "tool": "bnnpp 0.1.0",
        "command": "bnnpp binarize deit_tiny --method 'bnn++' --data-dir digits",
        "file": "model.safetensors",
        "method": method,
        "task": "bw",
        "model": {
            "source": "timm",
            "name": "deit_tiny_patch16_224",
            "num_classes": len(classes),
            "kwargs": {},
        },
        "data": {
            "name": "digits",
            "reference": {"dataset": "digits"},
            "fingerprint": "c0ffee12",
            "train_images": 1365,
            "held_out_images": 72,
            "val_images": 360,
            "classes": classes,
        },
        "accuracy": {
            "float": scored(97.7778, 0.0812),
            "soft": scored(95.2778, 0.2134),
            "hard": scored(94.4444, 0.2531),
            "packed": scored(94.4444, 0.2531),
        },
        "agreement": {"images": 64, "largest_difference": 0.0, "equal": True},
        "batchnorm": {"reestimated": True, "held_out_top1_before": 93.06, "held_out_top1_after": 94.44},
        "packed_epoch": epochs,
        "selection": "last",
        "epochs": [epoch(0, "float"), epoch(1, "float"), *map(epoch, range(epochs + 1))],
        "layers": [
            layer("patch_embed.proj", 16),
            *(layer(f"blocks.{i}.{part}") for i in range(blocks) for part in BLOCK),
            layer("head", 16),
        ],
        "bytes": SIZES,
        "macs": {"binary": 0, "signs": 1_045_757_952, "float": 28_901_376},
        "binary_weights": 5_308_416,
        "float32_bytes": 22_105_384,
        "ratio": 19.02,
        "confusion": sparse(counts.tolist()),
        "worst": [{"class": classes[0], "top1": 94.44, "taken": [{"for": classes[-1], "images": 2}]}],
        "recipe": Recipe(method=method).model_dump(mode="json"),
        "provenance": {
            "bnnpp": "0.1.0",
            "torch": "2.15.0",
            "device": "cpu",
            "seed": 0,
            "seconds": 61.5,
            "weights_sha256": None,
        },
        **changes,
    }


@pytest.fixture(scope="module")
def digits() -> dict:
    return a_document([str(i) for i in range(10)])


@pytest.fixture(scope="module")
def page(digits) -> str:
    return render(digits)


def printed(table, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_page_needs_nothing_else(page):
    assert not re.search(r"<(script|link|iframe|object)\b|@import", page)
    fetched = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(["']?([^)"']*)""", page)
    assert all(address.startswith(("#", "data:")) for pair in fetched for address in pair if address)
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_first_screen_shows_the_way_from_float_to_the_file(page):
    top = page[page.index("<header>") : page.index("</header>")]
    text = re.sub(r"<[^>]*>|\s+", " ", top)
    assert "−3.33 points, float to packed" in re.sub(r"\s+", " ", text)
    for expected in ("19.0×", "1.11 MiB", "97.78", "−2.50", "95.28", "−0.83", "±0", "int8"):
        assert expected in text, expected


def test_page_holds_the_numbers(page):
    text = re.sub(r"\s+", " ", page)
    for expected in (
        "97.78",
        "95.28",
        "0.2531",
        "logits equal those of the network that was packed exactly (largest difference 0)",
        "from 93.06 to 94.44, so the new statistics were kept",
        "kept: epoch 30",
        "start: mu = 5",
        "end: mu = 60",
        "5,308,416 binary weights",
        "blocks.0-11.attn.qkv x12",
        "c0ffee12",
        "reestimate_batchnorm: true",
        "9 (2)",
        "0 ↔ 9",
        "bnnpp binarize deit_tiny --method &#39;bnn++&#39; --data-dir digits",
    ):
        assert expected in text, expected
    assert "weights_sha256" not in page
    assert page.count('class="chart"') + page.count("class='chart'") == 7, "size, 4 of training, F and B"
    assert "<summary>50 layers, 48 of them binary" in page
    assert len(page) < 300 * 1024


def test_page_is_the_same_twice(digits, page):
    assert render(digits) == page


def test_page_escapes_names():
    hostile = "<script>alert('$x$')</script>"
    page = render(a_document([hostile, "b", "c"], blocks=1, command=f"bnnpp binarize {hostile}"))
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page


def test_page_without_training():
    """ptq from random weights: no float model, no soft network, no epochs; BatchNorm absent."""
    accuracy = {"float": None, "soft": None, "hard": scored(11, 2.3), "packed": scored(11, 2.3)}
    nothing = {"epochs": [], "packed_epoch": None, "batchnorm": None, "worst": []}
    page = render(a_document(["a", "b", "c"], blocks=1, method="ptq", accuracy=accuracy) | nothing)
    assert page.count("class='chart'") == 2, "sizes, and F alone: ptq has no B, and there were no epochs"
    assert "soft network" not in page and "float model" not in page
    assert "<h2>Training" not in page and "BatchNorm" not in page.split("The resolved recipe")[0]
    right = sparse(np.diag([5, 5, 5]).tolist())
    page = render(a_document(["a", "b", "c"], blocks=1) | nothing | {"confusion": right})
    assert "every validation image was classified correctly" in page


def test_page_of_a_thousand_classes():
    document = a_document(names := [f"class {i}" for i in range(1000)], epochs=2)
    document["confusion"] = many_confusions(1000)
    page = render(document)
    assert 'class="heat"' not in page
    assert "class 999 ↔" in page or "↔ class 999" in page
    assert len(page) < 300 * 1024
    assert len(as_json(document)) < 1024 * 1024 and len(names) == 1000


def test_the_largest_page_stays_small():
    """A thousand classes with long names, 300 epochs, every layer another one, a dozen pictures."""
    document = a_document([f"a class of animals, number {i}" for i in range(1000)], epochs=300, blocks=40)
    names = [row["name"] for row in document["layers"]]
    for place, row in enumerate(document["layers"]):
        row["bytes"] = 1000 + place
    shares = np.random.default_rng(0).uniform(0, 0.1, (len(names), 300)).tolist()
    photo = {"image": "data:image/jpeg;base64," + "A" * 6000, "true": "a", "packed": "b"}
    document |= {
        "confusion": many_confusions(1000),
        "flips": {"layers": names, "first_epoch": 1, "shares": shares},
        "changed": [photo] * 12,
    }
    assert len(names) > 150 and len(render(document).encode()) < 1024 * 1024


def many_confusions(classes: int, images: int = 50) -> dict:
    """50,000 images of 1,000 classes, a third of them mistaken, most often for a neighbour."""
    draw = np.random.default_rng(0)
    true = np.repeat(np.arange(classes), images)
    away = np.where(draw.random(true.size) < 0.67, 0, np.round(draw.standard_cauchy(true.size) * 3))
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (true, (true + away.astype(int)) % classes), 1)
    matrix[999, 3] += 60
    return sparse(matrix.tolist())


@pytest.mark.parametrize("method", METHODS)
def test_page_of_every_method(method):
    page = render(a_document(["a", "b", "c"], blocks=1, epochs=3, method=method))
    assert ("<h2>Quantizers" in page) == METHODS[method].binary


def page_of_binary_inputs(**changes) -> str:
    recipe = Recipe.model_validate({"method": "bnn++", "task": "bwa", **changes})
    document = a_document(["a", "b", "c"], blocks=1, task="bwa", recipe=recipe.model_dump(mode="json"))
    document["layers"] = [{**row, "input": "", "accumulator": None} for row in document["layers"]]
    return html.unescape(render(document))


def test_the_page_says_how_inputs_are_trained():
    page = page_of_binary_inputs(train={"harden": 0.5, "harden_inputs": 1.0})
    assert "F of inputs is sign from the first step, and B is SS' within 4.8 (convolutions) or 2.4" in page
    assert "F(x) of weights<" in page and "of inputs<" not in page
    page = page_of_binary_inputs(train={"harden": 0.5, "harden_inputs": 0.95}, activation={"window": 2.4})
    assert "F of inputs is sign in the last 95% of the steps, and B is SS' within 2.4 times" in page
    assert "of weights and of inputs<" in page
    page = page_of_binary_inputs(activation={"method": "bnn"})
    assert "F of inputs is sign" not in page and "F(x) of inputs<" in page


def test_the_page_says_what_rounding_changed():
    document = a_document(["a", "b", "c"], blocks=1)
    assert "Rounding what stays float" not in render(document)
    page = render(document | {"rounding": {"float_dtype": "float16", "points": -0.25}})
    assert "Rounding what stays float to float16 changed top-1 by \N{MINUS SIGN}0.25 points." in page
    whole = {"float_dtype": "float32", "points": 0.0}
    assert "Rounding what stays float" not in render(document | {"rounding": whole})


def test_a_difference_of_last_bits_is_admitted():
    agreement = {"images": 64, "largest_difference": 1.2e-6, "equal": False}
    page = render(a_document(["a", "b", "c"], blocks=1, agreement=agreement))
    assert "but for the last bits of sums: the largest difference is 1.2e-06" in page


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1_162_464, "1.11 MiB")]
)
def test_size(count, text):
    assert size(count) == text


def test_size_sentence():
    sentence = size_sentence(SIZES, 22_105_384, 19.02, 5_308_416)
    for part in (
        "5,308,416",
        "648.0 KiB at one bit",
        "54.0 KiB",
        "425.6 KiB",
        "7.6 KiB",
        "1.11 MiB",
        "19.0 times",
    ):
        assert part in sentence
    assert sentence.endswith("mostly the float tensors.")
    nothing = {"total": 1000, "binary": 0, "scales": 0, "float": 900, "metadata": 100}
    assert size_sentence(nothing, 1800, 1.8, 0).startswith(
        "No weight is binary; float tensors take 900 bytes"
    )


def test_layers_table(digits):
    text = printed(layers_table(digits["layers"]))
    assert "50 layers" in text and "48 binary" in text and "5,308,416 binary weights" in text
    assert f"{50 * 16_128:,}" in text
    before = {
        "name": "blocks[0]",
        "kind": "linear",
        "shape": [4, 4],
        "binary": True,
        "why": "matches '[ab]*'",
    }
    text = printed(layers_table([before]))
    assert "blocks[0]" in text and "matches '[ab]*'" in text and "1 bit" in text
    assert "bytes" not in text


def test_accuracy_table_leaves_out_what_was_not_scored(digits):
    text = printed(accuracy_table(digits["accuracy"] | {"soft": None}))
    assert "97.78" in text and "packed file" in text and "soft" not in text


def test_worst_table():
    rows = [
        {"class": "[cat]", "top1": 50.0, "taken": [{"for": "dog", "images": 3}, {"for": "cow", "images": 1}]}
    ]
    text = printed(worst_table(rows))
    assert "[cat]" in text and "50.00" in text and "dog (3), cow (1)" in text


def test_curves():
    method = find_method("bnn++")
    curves = sample(method, method.schedules, 10)
    assert [c.label for c in curves.lines] == ["start: mu = 5", "middle: mu = 17.3", "end: mu = 60"]
    assert [c.peak for c in curves.lines] == pytest.approx([5, 300**0.5, 60])
    assert all(c.backward.max() == 1 for c in curves.lines)
    assert curves.reach == pytest.approx(0.3)
    assert sample(method, method.schedules, None).reach is None
    assert [c.label for c in sample(find_method("bc"), {}, 10).lines] == ["throughout"]


def test_plot_of_a_method_has_two_panels_or_one():
    for name, panels in (("bnn++", 2), ("ptq", 1)):
        method = find_method(name)
        assert len(quantizer_curves(sample(method, method.schedules, 10)).axes) == panels


def test_rows_that_are_alike_are_one():
    rows = fold(a_document(["a", "b", "c"])["layers"])
    assert [folded_name(row) for row in rows] == [
        "patch_embed.proj",
        "blocks.0-11.attn.qkv x12",
        "blocks.0-11.attn.proj x12",
        "blocks.0-11.mlp.fc1,2 x24",
        "head",
    ]
    assert rows[1]["bytes"] == 12 * 16_128 and rows[1]["count"] == 12


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_of_many_layers_is_short_and_a_line_a_row_in_narrow_terminals(width):
    layers = a_document(["a", "b", "c"], blocks=80)["layers"]
    lines = [line for line in printed(layers_table(layers), width).splitlines() if line.strip()]
    assert len(layers) > 320 and len(lines) < 12
    assert all(len(line) <= width for line in lines) and any("blocks.0-79" in line for line in lines)


def test_the_line_of_an_epoch_leaves_out_its_end_rather_than_wrap():
    parts = [
        "binary epoch 30/30",
        "loss 0.0713",
        "",
        "soft 98.06  hard 98.06",
        "flips 0.02%",
        "mu=150 F=sign",
    ]
    assert fitting([*parts, "2.3 s", "589 images/s"], None).endswith("F=sign  2.3 s  589 images/s")
    assert fitting([*parts, "2.3 s", "589 images/s"], 100).endswith("F=sign  2.3 s")
    assert fitting([*parts, "2.3 s", "589 images/s"], 80).endswith("flips 0.02%")


def test_a_folded_name_stands_for_exactly_its_layers():
    """layer1.0.conv1, layer1.0.conv2 and layer1.1.conv1 are no rectangle of numbers: two rows say them."""
    names = ["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer3.7.conv1"]
    rows = fold([layer(name) for name in names])
    assert sorted(name for row in rows for name in row["names"]) == sorted(names)
    assert [folded_name(row) for row in rows] == ["layer1.0.conv1,2 x2", "layer1.1.conv1", "layer3.7.conv1"]
    assert folded_name(fold([layer(f"b.{i}") for i in (0, 2, 5)])[0]) == "b.0,2,5 x3"
    assert len(fold([layer("a.0"), layer("a.1", 16)])) == 2, "one bit and sixteen are not alike"


def test_reasons_are_short():
    assert reason("every layer but those kept float") == ""
    assert reason("first layer (keep_float)") == "first"
    assert reason("matches '*.fc1' (keep_float)") == "matches '*.fc1'"


def test_confusions_are_kept_without_zeros_and_paired():
    matrix = [[5, 2, 0], [1, 6, 0], [0, 3, 4]]
    counts = sparse(matrix)
    assert counts["images"] == [5, 2, 1, 6, 3, 4] and dense(counts, 3) == matrix
    assert pairs(counts, ["a", "b", "c"]) == [
        {"first": "a", "second": "b", "images": 3, "forth": 2},
        {"first": "c", "second": "b", "images": 3, "forth": 3},
    ]


def test_tiles_cover_the_rectangle_in_proportion():
    values = [50, 0, 30, 12, 5, 2, 1]
    tiles = squarify(values)
    assert sorted(tile.index for tile in tiles) == [0, 2, 3, 4, 5, 6]
    for tile in tiles:
        assert tile.width * tile.height / 100 == pytest.approx(values[tile.index])
        assert tile.x >= 0 and tile.x + tile.width <= 100 + 1e-9 and tile.y + tile.height <= 100 + 1e-9


def test_labels_of_many_rows_are_those_of_their_blocks():
    names = [f"blocks.{i}.{part}" for i in range(12) for part in BLOCK]
    labels = row_labels(names)
    assert labels[0] == ("blocks.0", 4) and sum(count for _, count in labels) == len(names)
    assert row_labels(["a", "b"]) == [("a", 1), ("b", 1)]
    many = row_labels([f"layer{i}" for i in range(500)])
    assert len(many) <= 26 and sum(count for _, count in many) == 500


def test_a_speed_is_put_into_the_report_and_its_page(tmp_path):
    (tmp_path / "report.json").write_text(as_json(a_document(["a", "b", "c"])))
    row = {"float": 200.0, "packed": 500.0, "ratio": 2.5}
    page = add_speed(tmp_path / "model.safetensors", row, 64, "cpu").read_text()
    assert "2.50×" in page and "Speed: 500 images/s, the float model 200, in batches of 64 on cpu." in page
    assert json.loads((tmp_path / "report.json").read_text())["speed"]["ratio"] == 2.5
    with pytest.raises(InputError, match="no report of this file"):
        add_speed(tmp_path / "other.safetensors", row, 64, "cpu")


@pytest.mark.parametrize(
    ("select", "said"), [("last", "nothing was selected"), ("val", "selected on these very images")]
)
def test_page_says_what_the_packed_epoch_was_selected_on(select, said):
    assert said in render(a_document(["a", "b", "c"], blocks=1, selection=select))
