"""`bnnpp predict`: what it says of files, folders and lists, and of images that cannot be read."""

from __future__ import annotations

import io
import json
import sys

import pytest
from PIL import Image

import bnnpp as library


@pytest.fixture
def photos(tiny):
    return sorted((tiny / "val").rglob("*.png"))


def test_predictions_are_those_of_the_library_one_line_an_image(bnnpp, finished, photos):
    file = finished / "model.safetensors"
    left = bnnpp("predict", file, *photos[:3], "--top", 2, "--device", "cpu")
    assert left.code == 0, left.err
    expected = library.predict(file, photos[:3], top=2)
    for line, image, classes in zip(left.out.splitlines(), photos, expected, strict=False):
        shares = ", ".join(f"{name} {share:.3f}" for name, share in classes)
        assert line == f"{image}  {shares}"


def test_folders_and_lists_on_stdin_stand_for_images(bnnpp, finished, tiny, photos, monkeypatch):
    file = finished / "model.safetensors"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos[0]}\n\n{photos[1]}\n"))
    left = bnnpp("predict", file, tiny / "val", "-", "--json", "-b", 7, "--top", 1)
    said = json.loads(left.out)
    assert [each["image"] for each in said["images"]] == [*map(str, photos), str(photos[0]), str(photos[1])]
    assert said["unreadable"] == [] and said["file"] == str(file)
    for each in said["images"]:
        ((best),) = each["top"]
        assert best["name"] in map(str, range(10)) and 0.1 <= best["probability"] <= 1


def test_unreadable_images_are_named_and_the_others_predicted(bnnpp, finished, photos, tmp_path):
    file, folder = finished / "model.safetensors", tmp_path / "mixed"
    folder.mkdir()
    Image.open(photos[0]).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    Image.open(photos[1]).save(folder / "c.png")
    (folder / ".d.png").write_bytes(b"hidden")
    left = bnnpp("predict", file, folder)
    assert left.code == 2 and left.out.count("\n") == 2
    assert f"1 of 3 images cannot be decoded: {folder / 'b.png'}" in left.err and "Traceback" not in left.err
    left = bnnpp("predict", file, folder, "--skip-unreadable", "--json")
    assert left.code == 0 and json.loads(left.out)["unreadable"] == [str(folder / "b.png")]
    assert "left out: 1 of 3" in left.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.safetensors", "a.png"), "none.safetensors: no such file"),
        (("a.png", "none.png"), "none.png: there is no such image"),
        (("a.png", "folder"), "folder: there are no images in it"),
        (("a.png", "-"), "-: there are no images"),
        (("a.png", "a.png"), "a.png: cannot be read"),
        (("a.png",), "Missing argument"),
    ],
)
def test_bad_input_is_one_message(bnnpp, empty, monkeypatch, words, said):
    (empty / "folder").mkdir()
    Image.new("L", (8, 8)).save(empty / "a.png")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    left = bnnpp("predict", *words)
    assert left.code == 2 and left.out == "" and said in left.err and "Traceback" not in left.err
