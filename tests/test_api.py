"""The library: `import bnnpp` and what its names do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import bnnpp

ROOT = Path(__file__).parents[1]


class Small(nn.Module):
    """A network that no model library knows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.mix = nn.Linear(16, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.norm(self.conv(self.stem(x).relu())).relu().mean((2, 3))
        return self.head(self.mix(x).relu())


@pytest.fixture(name="command")
def the_command(request):
    """The command line in this process: the fixture `bnnpp`, under a name that the library leaves free."""
    return request.getfixturevalue("bnnpp")


def images(count: int = 16) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_importing_the_library_imports_nothing_heavy_and_every_name_is_there():
    code = "import bnnpp, sys; assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert set(dir(bnnpp)) == set(bnnpp.__all__)
    for name in bnnpp.__all__:
        assert getattr(bnnpp, name) is not None
    with pytest.raises(AttributeError, match="no_such"):
        bnnpp.no_such  # noqa: B018


@pytest.mark.parametrize("recipe", ["default", {"method": "pq"}, {"task": "bwa"}, {"task": "bwaa"}])
def test_a_network_of_ones_own_is_binarized_trained_in_a_plain_loop_saved_and_loaded(recipe, tmp_path):
    torch.manual_seed(0)
    x, y = images(), torch.arange(16) % 10
    made = bnnpp.binarize(Small(), x[:2], recipe=recipe, images=x)
    assert [row.name for row in made.table if row.binary] == ["conv", "mix"]
    optimizer = torch.optim.AdamW(made.net.parameters(), lr=1e-2)
    losses = []
    for step in range(12):
        made.move_to(step / 9) if step < 10 else made.harden()
        loss = nn.functional.cross_entropy(made.net(x), y)
        optimizer.zero_grad()
        loss.backward()
        made.step(optimizer)
        losses.append(float(loss.detach()))
    assert min(losses[1:]) < losses[0] and all(map(torch.isfinite, map(torch.tensor, losses)))
    file = bnnpp.save(made, tmp_path / "mine.safetensors")
    expected = made.frozen()(x)
    loaded = bnnpp.load_into(Small(), file)
    assert not loaded.training and torch.equal(loaded(x), expected)
    made.net.eval()
    torch.testing.assert_close(expected, made.net(x), rtol=2e-2, atol=2e-2)  # the rest is float16 in the file


def test_a_file_of_another_network_is_refused_and_eval_says_how_to_load_it(tmp_path, command):
    made = bnnpp.binarize(Small(), images(2))
    file = bnnpp.save(made, tmp_path / "mine.safetensors")
    with pytest.raises(bnnpp.InputError, match="does not fit"):
        bnnpp.load_into(nn.Sequential(nn.Linear(3, 3)), file)
    with pytest.raises(bnnpp.InputError, match="load_into"):
        bnnpp.load(file)
    left = command("eval", file)
    assert left.code == 2 and "load_into" in left.err
    assert command("inspect", file).code == 0


def test_a_progress_outside_of_the_schedule_is_refused():
    made = bnnpp.binarize(Small(), images(2))
    for progress in (-0.1, 1.01, float("nan")):
        with pytest.raises(bnnpp.InputError, match="is not in"):
            made.move_to(progress)


def test_binary_inputs_ask_for_images_and_a_faulty_recipe_is_told():
    with pytest.raises(bnnpp.InputError, match="calibrates on images"):
        bnnpp.binarize(Small(), images(2), recipe={"task": "bwa"})
    with pytest.raises(bnnpp.InputError, match="no method is named 'bnn--'"):
        bnnpp.binarize(Small(), images(2), recipe={"method": "bnn--"})


def test_a_packed_file_is_loaded_and_names_what_is_on_an_image(finished, tmp_path):
    file = tmp_path / "seven.png"
    Image.new("L", (8, 8), 128).save(file)
    net = bnnpp.load(finished / "model.safetensors")
    assert not net.training and len(net.classes) == 10 and net.document.method == "bnn++"
    shares = net(net.transform(Image.open(file))).softmax(1)
    ((first, *rest),) = bnnpp.predict(finished / "model.safetensors", [file], top=3)
    assert first.name == net.classes[int(shares.argmax())] and len(rest) == 2
    assert first.probability == pytest.approx(float(shares.detach().max()), rel=1e-6)
    assert bnnpp.predict(net, str(file), top=3) == bnnpp.predict(net, Image.open(file), top=3)
    assert bnnpp.predict(net, [Image.open(file).convert("RGBA")]) == bnnpp.predict(net, [file])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(bnnpp.InputError, match="cannot be decoded"):
        bnnpp.predict(net, [tmp_path / "broken.png"])


def test_the_library_logs_and_prints_nothing(tmp_path):
    code = """
import logging, sys, torch, bnnpp
net = torch.nn.Sequential(torch.nn.Flatten(), *(torch.nn.Linear(16, 16) for _ in range(3)))
bnnpp.save(bnnpp.binarize(net, torch.rand(2, 1, 4, 4)), sys.argv[1])
from binarize_cli.console import say, warn
say("a line of progress")
logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
warn("100% sure")
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.safetensors"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.stdout == "" and ran.stderr == "bnnpp WARNING 100% sure\n"


def test_the_examples_of_the_readme_run(finished, tmp_path, monkeypatch):
    """Every block of Python in the README, one after another, beside a packed file and an image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((finished / "model.safetensors").read_bytes())
    Image.new("L", (8, 8), 200).save(tmp_path / "cat.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    scope: dict = {}
    for block in blocks:
        assert len(block.strip().splitlines()) <= 30
        exec(block, scope)
