"""WebDataset shards: read in place, as a folder of the same images is, whoever wrote the tar files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from binarize_cli.data.archive import list_archive
from binarize_cli.data.datasets import open_dataset
from binarize_cli.data.shards import members
from binarize_cli.errors import InputError


def encoded(shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(
    path: Path, samples: dict[str, dict[str, bytes]], mtime: float = 0.0, format=tarfile.PAX_FORMAT
) -> Path:
    """A shard, as webdataset writes it: with a time that is no whole number every member has a PAX header."""
    with tarfile.open(path, "w", format=format) as tar:
        for key, parts in samples.items():
            for ending, content in parts.items():
                entry = tarfile.TarInfo(f"{key}.{ending}")
                entry.size, entry.mtime = len(content), mtime
                tar.addfile(entry, io.BytesIO(content))
    return path


def sample(number: int) -> dict[str, bytes]:
    label = json.dumps({"label": number % 2, "other": -1 if number == 1 else 5}).encode()
    return {"png": encoded(10 * number), "cls": str(number % 3).encode(), "json": label}


@pytest.fixture
def shards(tmp_path) -> Path:
    """Two shards of training images, one of validation images."""
    root = tmp_path / "shards"
    root.mkdir()
    write(root / "set-train-0.tar", {f"a/{n:03}": sample(n) for n in range(4)}, mtime=1.5)
    write(root / "set-train-1.tar", {f"b/{n:03}": sample(n) for n in range(4, 7)})
    write(root / "set-validation-0.tar", {f"c/{n:03}": sample(n) for n in range(3)})
    return root


def shades(split) -> list[int]:
    return [split.read(i).getpixel((0, 0))[0] // 10 for i in range(len(split))]


def test_shards_are_found_by_name_and_read_in_place(shards, monkeypatch):
    monkeypatch.setattr("binarize_cli.data.shards.list_archive", None)  # it is slow, and not needed for these
    dataset = open_dataset("wds/set", shards)
    assert shades(dataset.train) == [*range(7)] and dataset.train.targets == [0, 1, 2, 0, 1, 2, 0]
    assert shades(dataset.val) == [0, 1, 2] and dataset.classes == ("0", "1", "2")
    assert dataset.reference == {"dataset": "wds/set", "data_dir": str(shards)}
    assert len(open_dataset("wds/set", shards, need_train=False).train) == 0


def info(root: Path, label: str = "", images: int = 7) -> None:
    def split(name: str, count: int) -> dict:
        files = sorted(path.name for path in root.glob(f"*{name}*.tar"))
        return {
            "name": name,
            "num_samples": count,
            "filenames": files,
            "shard_lengths": [],
            "alt_label": label,
        }

    splits = {"train": split("train", images), "validation": split("validation", 3)}
    (root / "_info.json").write_text(json.dumps({"splits": splits}))


def test_an_info_file_says_which_shards_a_split_has_and_where_the_labels_are(shards):
    write(shards / "set-other.tar", {"x": sample(0)})
    info(shards)
    assert len(open_dataset("wds/set", shards).train) == 7
    info(shards, label="label")
    assert open_dataset("wds/set", shards).train.targets == [0, 1, 0, 1, 0, 1, 0]
    info(shards, label="other")
    dataset = open_dataset("wds/set", shards)
    assert shades(dataset.val) == [0, 2] and dataset.val.targets == [5, 5]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize(
    "key", ["n01", "folder/" * 15 + "long" * 10, "häuser"], ids=["short", "long", "other"]
)
def test_members_are_those_that_tarfile_lists(format, key, tmp_path):
    path = write(tmp_path / "x.tar", {"first": sample(1), key: sample(2)}, 1.25, format)
    assert list(members(path)) == list_archive(path)[0] and len(members(path)) == 6


def broken(root: Path, fault: str) -> None:
    train = root / "set-train-0.tar"
    if fault == "no folder":
        for path in root.iterdir():
            path.unlink()
    elif fault == "cut":
        train.write_bytes(train.read_bytes()[:3000])
    elif fault == "no tar":
        train.write_bytes(b"<html>" * 1000)
    elif fault == "negative size":
        content = bytearray(train.read_bytes())
        content[124:136] = b"-0000002000\0"
        train.write_bytes(content)
    elif fault == "no class":
        write(train, {"key7": {"png": encoded(1)}})
    elif fault == "no image":
        write(train, {"key7": {"cls": b"1"}})
    elif fault == "no number":
        write(train, {"key7": {"png": encoded(1), "cls": b"cat"}})
    elif fault == "too few":
        info(root, images=9)
    else:
        info(root)
        train.unlink()


@pytest.mark.parametrize(
    "fault,said",
    [
        ("no folder", "no shards of the split 'validation'"),
        ("cut", "cannot be read as a tar file"),
        ("no tar", "cannot be read as a tar file"),
        ("negative size", "cannot be read as a tar file"),
        ("no class", r"key7 lacks a class \(\.cls\)"),
        ("no image", "key7 lacks an image"),
        ("no number", "holds no class"),
        ("too few", "only 7 of 9 images"),
        ("missing", "1 shard of 2 missing, such as 'set-train-0.tar'"),
    ],
)
def test_what_is_wrong_with_shards_is_told(fault, said, shards):
    broken(shards, fault)
    with pytest.raises(InputError, match=said):
        open_dataset("wds/set", shards)


def test_names_that_are_no_text_are_left_to_tarfile(tmp_path):
    write(tmp_path / "a.tar", {"key": {"cls": b"1"}})
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[0] = 0xFF
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * ord(" ") + sum(content[156:512]))
    (tmp_path / "a.tar").write_bytes(content)
    assert list(members(tmp_path / "a.tar")) == list_archive(tmp_path / "a.tar")[0] != []


def test_a_folder_must_be_named(tmp_path):
    with pytest.raises(InputError, match="must be in a folder"):
        open_dataset("wds/set")
    with pytest.raises(InputError, match="is not a folder"):
        open_dataset("wds/set", tmp_path / "nowhere")


def test_a_run_takes_shards(shards, bnnpp, tmp_path):
    words = ("digits_vit", "--dataset", "wds/set", "--data-dir", shards, "--no-pretrained", "--epochs", 0)
    done = bnnpp("binarize", *words, "-j", 0, "-o", tmp_path / "run")
    assert done.code == 0, done.err
    assert "3 classes, 7 training and 3 validation images" in done.err
    assert bnnpp("eval", done.packed, *words[1:5], "-j", 0).code == 0
