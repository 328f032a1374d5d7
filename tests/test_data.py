"""The data room: datasets open the same everywhere, bad input is named, batches repeat to the bit."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from binarize_cli.data.batches import choose_workers
from binarize_cli.data.datasets import UnreadableImage, known_datasets, open_dataset
from binarize_cli.data.decode import decode
from binarize_cli.data.device import DeviceCache, fits_on_device
from binarize_cli.data.images import ImageDataset, Split
from binarize_cli.data.loaders import (
    Batches,
    ScoreBatches,
    cache_on_device,
    hold_out,
)
from binarize_cli.data.transforms import resolve_augment, score_transform, train_transform
from binarize_cli.errors import InputError
from binarize_cli.recipe import Augment

IMAGENETTE = Path(__file__).parents[2] / "shared" / "data" / "imagenette.tar.xz"
SIDE = 24  # pixels


@dataclass(frozen=True)
class Preprocessing:
    """The attributes that the models room gives."""

    input_size: tuple[int, int, int] = (3, SIDE, SIDE)
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.9
    crop_mode: str = "center"


GREY = Preprocessing((1, 8, 8), mean=(0.3,), std=(0.4,), crop_pct=1.0)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of noise, 12 training and 4 validation images."""
    noise = np.random.default_rng(0)
    for split, count in ("train", 6), ("val", 2):
        for name in "cat", "dog":
            place = tmp_path / "pets" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "pets"


def pack(folder: Path, archive: Path, wrapper: str) -> Path:
    kind = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz"}[archive.suffix]
    with tarfile.open(archive, kind) as tar:
        tar.add(folder, arcname=wrapper)
    return archive


def training(dataset, preprocessing=GREY, augment=None, **options):
    transform = train_transform(preprocessing, augment or Augment(), dataset)
    return Batches(dataset.train, transform, **{"batch_size": 100, "seed": 3} | options)


def assert_same(some, others):
    some, others = list(some), list(others)
    assert len(some) == len(others)
    for (images, targets), (other_images, other_targets) in zip(some, others, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(targets, other_targets)


# --- opening


def test_digits_are_what_they_were():
    digits = open_dataset("digits", None)
    assert (len(digits.train), len(digits.val)) == (1437, 360)
    assert digits.classes == tuple("0123456789")
    assert np.bincount(digits.train.targets).tolist() == [142, 146, 141, 147, 144, 146, 145, 143, 139, 144]
    assert np.bincount(digits.val.targets).tolist() == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]
    assert digits.fingerprint.startswith("09f66e6d")
    assert (digits.hflip, digits.native_size, digits.reference) == (0.0, 8, {"dataset": "digits"})
    first = np.asarray(digits.val.read(0))
    assert (first.dtype, first.shape, first.min(), first.max()) == (np.uint8, (8, 8), 0, 239)


def test_digits_take_no_folder(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        open_dataset("digits", tmp_path)


def test_folder(folder):
    pets = open_dataset(None, folder)
    assert pets.classes == ("cat", "dog")
    assert pets.train.targets == [0] * 6 + [1] * 6
    assert pets.val.targets == [0, 0, 1, 1]
    assert pets.name == str(folder)
    assert pets.val.read(3).size == (40, 30)
    assert open_dataset(**pets.reference).fingerprint == pets.fingerprint


@pytest.mark.parametrize("name", ["pets.tar", "pets.tar.gz", "pets.TGZ", "pets.tar.xz"])
@pytest.mark.parametrize("wrapper", ["", "some/pets", "."])
def test_archives_read_as_the_folder_does(folder, tmp_path, name, wrapper):
    if wrapper == "some/pets":
        wrapper = "pets"  # one folder around the splits
    (folder / "train" / "cat" / "._0.png").write_bytes(b"what macOS puts into archives")
    plain = open_dataset(None, folder)
    archive = tmp_path / name.lower()
    pack(folder, archive, wrapper)
    packed = open_dataset(None, archive.rename(tmp_path / name))
    assert (packed.classes, packed.fingerprint) == (plain.classes, plain.fingerprint)
    for split, other in (packed.train, plain.train), (packed.val, plain.val):
        assert split.targets == other.targets
        assert all(split.read(i).tobytes() == other.read(i).tobytes() for i in range(len(other)))


def test_a_dataset_of_timms(folder):
    pets, plain = open_dataset("torch/image_folder", folder), open_dataset(None, folder)
    assert (pets.classes, pets.name) == (plain.classes, "torch/image_folder")
    assert pets.train.targets == plain.train.targets
    assert pets.val.read(3).tobytes() == plain.val.read(3).tobytes()
    assert len(open_dataset(**pets.reference, need_train=False).train) == 0


def test_the_default_is_said(monkeypatch, capsys, folder):
    monkeypatch.delenv("BNNPP_DATA", raising=False)
    assert open_dataset(None, None).name == "digits"
    monkeypatch.setenv("BNNPP_DATA", str(folder))
    assert open_dataset(None, None).name == str(folder)
    streams = capsys.readouterr()
    assert "embedded 'digits'" in streams.err
    assert f"$BNNPP_DATA, {folder}" in streams.err
    assert streams.out == ""


def test_the_fingerprint_follows_the_files(folder):
    before = open_dataset(None, folder).fingerprint
    with (folder / "train" / "cat" / "0.png").open("ab") as file:
        file.write(b"!")
    assert open_dataset(None, folder).fingerprint != before


def test_small_squares_are_recognised(folder):
    assert open_dataset(None, folder).native_size is None
    for file in folder.rglob("*.png"):
        Image.open(file).resize((32, 32)).save(file)
    assert open_dataset(None, folder).native_size == 32


def test_scoring_needs_val_alone(folder):
    shutil.rmtree(folder / "train")
    pets = open_dataset(None, folder, need_train=False)
    assert (len(pets.train), len(pets.val), pets.classes) == (0, 4, ("cat", "dog"))


def test_listing_imports_nothing_heavy(folder):
    code = f"""
import sys
from pathlib import Path
from binarize_cli.data.datasets import open_dataset
open_dataset(None, Path({str(folder)!r}))
open_dataset('digits', None)
print([name for name in ('torch', 'torchvision', 'timm', 'numpy') if name in sys.modules])"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


# --- bad input


def unlink_all(folder: Path):
    for file in folder.iterdir():
        file.unlink()


FAULTS = {
    "does not exist": (lambda f: shutil.rmtree(f), ""),
    "is empty": (lambda f: [shutil.rmtree(f / "train"), shutil.rmtree(f / "val")], ""),
    "has no train/ folder; it holds val/": (lambda f: shutil.rmtree(f / "train"), ""),
    "has no val/, validation/ or test/ folder; it holds train/": (lambda f: shutil.rmtree(f / "val"), ""),
    "holds one class only, dog": (lambda f: shutil.rmtree(f / "val" / "cat"), "val"),
    "class folders without images: cat": (lambda f: unlink_all(f / "train" / "cat"), "train"),
    "has no class folders": (lambda f: [shutil.rmtree(f / "val" / c) for c in ("cat", "dog")], "val"),
    "lacks 1 of the classes of val/: eel": (lambda f: shutil.copytree(f / "val/cat", f / "val/eel"), "train"),
    "lacks 1 of the classes of train/: eel": (
        lambda f: shutil.copytree(f / "train/cat", f / "train/eel"),
        "val",
    ),
    "1 image outside any class folder: 7.png": (
        lambda f: shutil.copy(f / "val/cat/0.png", f / "train/7.png"),
        "train",
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_of_a_folder_name_the_place_and_the_fix(folder, message):
    spoil, place = FAULTS[message]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        open_dataset(None, folder)
    assert str(caught.value).startswith(f"{folder / place}: {message}")
    assert caught.value.hint


def test_a_file_that_is_no_dataset(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt: is neither a folder nor a tar file"):
        open_dataset(None, text)
    with pytest.raises(InputError, match=r"notes\.txt: is a path"):
        open_dataset(str(text), None)


@pytest.mark.parametrize("name", ["cut.tar", "cut.tar.gz", "cut.tar.xz"])
def test_an_archive_cut_short(folder, tmp_path, name):
    archive = pack(folder, tmp_path / name, "pets")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(InputError, match=f"{name}: cannot be read as a tar file"):
        open_dataset(None, archive)


def test_an_archive_of_links(folder, tmp_path):
    (folder / "train" / "cat" / "9.png").symlink_to("0.png")
    with pytest.raises(InputError, match=r"1 entries are links, such as pets/train/cat/9\.png"):
        open_dataset(None, pack(folder, tmp_path / "pets.tar", "pets"))


def test_an_unknown_name_gets_a_guess():
    with pytest.raises(InputError, match="Did you mean 'cifar10'") as caught:
        open_dataset("cifar-10", None)
    assert all(name in caught.value.hint for name in known_datasets())


def test_a_download_that_fails(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(InputError, match="--data-dir") as caught:
        open_dataset("cifar10", tmp_path)
    assert str(tmp_path) in caught.value.what


def test_unreadable_images_are_counted_and_named(folder, capsys):
    broken = [folder / "train" / "cat" / "3.png", folder / "train" / "dog" / "0.png"]
    broken[0].write_bytes(broken[0].read_bytes()[:200])
    broken[1].write_text("not an image")
    split = open_dataset(None, folder).train
    with pytest.raises(UnreadableImage) as caught:
        decode(split, skip_unreadable=False, limit_gb=1)
    message = f"2 of 12 images cannot be decoded: {broken[0]}, {broken[1]}"
    assert message in str(caught.value)
    assert "--skip-unreadable" in caught.value.hint
    for limit in 1, 0:
        assert decode(split, skip_unreadable=True, limit_gb=limit).targets == [0] * 5 + [1] * 5
        assert message in capsys.readouterr().err


def test_skipping_never_loses_a_class(folder):
    for file in (folder / "val" / "cat").iterdir():
        file.write_text("not an image")
    with pytest.raises(UnreadableImage, match="no image is left of 1 of the classes"):
        decode(open_dataset(None, folder).val, skip_unreadable=True, limit_gb=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_met_on_the_way(folder, workers):
    broken = folder / "val" / "dog" / "1.png"
    broken.write_text("not an image")
    split = decode(open_dataset(None, folder).val, skip_unreadable=False, limit_gb=0)
    with pytest.raises(UnreadableImage) as caught:
        list(ScoreBatches(split, Preprocessing(), batch_size=2, workers=workers))
    assert str(caught.value).startswith(f"{broken}: cannot be decoded")


def test_decoding_keeps_the_pixels(folder):
    Image.new("I;16", (9, 7), 0x8000).save(folder / "val" / "cat" / "0.png")
    Image.new("P", (5, 6)).save(folder / "val" / "cat" / "1.png")
    split = open_dataset(None, folder).val
    decoded = decode(split, skip_unreadable=False, limit_gb=1)
    assert [(decoded.read(i).mode, decoded.read(i).size) for i in range(2)] == [
        ("L", (9, 7)),
        ("RGB", (5, 6)),
    ]
    assert decoded.read(0).getpixel((0, 0)) == 128
    assert all(split.read(i).tobytes() == decoded.read(i).tobytes() for i in range(4))


# --- batches

HEAVY = Augment(crop="rrc", color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1", reprob=0.5)


@pytest.mark.parametrize("augment", [Augment(), HEAVY], ids=["default", "heavy"])
def test_workers_and_restarts_change_nothing(augment):
    batches = training(open_dataset("digits", None), augment=augment)
    whole = list(batches.epoch(1))
    assert len(whole) == len(batches) == 14
    assert whole[0][0].shape == (100, 1, 8, 8)
    assert whole[0][0].dtype == torch.float32 and whole[0][1].dtype == torch.int64
    batches.workers = 2
    assert_same(whole, batches.epoch(1))
    assert_same(whole[5:], batches.epoch(1, start=5))


def test_seeds_and_epochs_differ():
    digits = open_dataset("digits", None)
    images = [next(training(digits, seed=s).epoch(e))[0] for s, e in [(0, 0), (0, 1), (1, 0), (-1, 0)]]
    assert all(not torch.equal(images[i], images[j]) for i in range(4) for j in range(i))


def test_the_generators_outside_stay_where_they_were():
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = torch.rand(2), random.random(), np.random.rand()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    list(training(open_dataset("digits", None), augment=HEAVY).epoch(0))
    assert torch.equal(torch.rand(2), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]


def test_an_epoch_holds_each_image_once():
    digits = open_dataset("digits", None)
    subset = digits.train.subset(range(40))
    still = train_transform(GREY, Augment(crop="none"), digits)
    (images, targets), *rest = Batches(subset, still, batch_size=64, seed=0).epoch(0)
    (expected, order), *_ = ScoreBatches(subset, GREY, batch_size=64)
    assert not rest
    assert sorted(targets.tolist()) == sorted(order.tolist())
    assert sorted(images.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())


def test_loader_processes_are_as_many_as_the_cores_and_none_for_a_few_small_images(monkeypatch, folder):
    digits, pictures = open_dataset("digits", None), open_dataset(None, folder)
    for cores, expected in [(1, 1), (6, 6), (64, 8)]:
        monkeypatch.setattr("binarize_cli.data.batches.usable_cores", lambda cores=cores: cores)
        assert choose_workers(None, digits, len(digits.val)) == 0
        assert choose_workers(None, digits, 10_000) == expected
        assert choose_workers(None, pictures, len(pictures.val)) == expected
    assert choose_workers(3, digits, 5) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_scoring_is_complete_and_in_order(workers):
    val = open_dataset("digits", None).val
    batches = ScoreBatches(val, GREY, batch_size=100, workers=workers)
    assert len(batches) == len(list(batches)) == 4
    images = torch.cat([images for images, _ in batches])  # a second time
    assert torch.cat([targets for _, targets in batches]).tolist() == val.targets
    pixels = torch.tensor(np.stack([np.asarray(val.read(i)) for i in range(len(val))]))[:, None]
    assert torch.equal(images, (pixels.float() / 255 - 0.3) / 0.4)


def test_scoring_sees_what_timm_would_show(folder):
    config = Preprocessing(interpolation="bicubic")
    val = open_dataset(None, folder).val
    names = ["input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"]
    timm = create_transform(**{name: getattr(config, name) for name in names})
    ((images, _),) = ScoreBatches(val, config, batch_size=4)
    assert torch.equal(images, torch.stack([timm(val.read(i)) for i in range(4)]))


def test_models_of_three_channels_see_grey_images_in_colour():
    val = open_dataset("digits", None).val
    images, _ = next(iter(ScoreBatches(val, Preprocessing(), batch_size=5)))
    assert images.shape == (5, 3, SIDE, SIDE)
    assert score_transform(GREY).image(Image.new("RGB", (8, 8))).shape == (1, 8, 8)


def test_auto_augment_settles_by_size_and_dataset(folder):
    digits, pets = open_dataset("digits", None), open_dataset(None, folder)
    settled = resolve_augment(Augment(), GREY, digits)
    assert (settled.crop, settled.hflip) == ("pad", 0.0)
    assert resolve_augment(settled, GREY, digits) == settled
    settled = resolve_augment(Augment(), Preprocessing(), pets)
    assert (settled.crop, settled.hflip) == ("rrc", 0.5)


def test_the_pad_crop_shifts_by_an_eighth_and_fills_with_zeros():
    digits = open_dataset("digits", None)
    white = Image.new("L", (8, 8), 255)
    crop = train_transform(GREY, Augment(), digits).image
    lost = set()
    for _ in range(200):
        zero = crop(white)[0] == 0
        lost.add((zero.sum(0).max().item(), zero.sum(1).max().item()))
    assert lost == {(0, 0), (1, 8), (8, 1), (8, 8)}


@pytest.mark.parametrize("policy", ["rand-m0", "v0", "augmix-m5-w4-d2"])
def test_policies_that_leave_no_bits_survive(policy):
    transform = train_transform(GREY, Augment(auto_augment=policy), open_dataset("digits", None)).image
    for _ in range(200):
        transform(Image.new("L", (8, 8), 255))


def test_an_unknown_auto_augment():
    with pytest.raises(InputError, match="timm cannot read 'rand-z9'"):
        train_transform(GREY, Augment(auto_augment="rand-z9"), open_dataset("digits", None))


def test_hold_out():
    train = open_dataset("digits", None).train
    kept, held = hold_out(train, 0.05, seed=0)
    assert (len(kept), len(held)) == (1365, 72)
    assert sorted(kept.items + held.items) == sorted(train.items)
    assert hold_out(train, 0.05, seed=0)[1].items == held.items
    assert hold_out(train, 0.05, seed=1)[1].items != held.items
    assert len(hold_out(train, 0.5, seed=0, cap=10)[1]) == 10


@pytest.mark.skipif(not IMAGENETTE.exists(), reason=f"no shared data at {IMAGENETTE}")
def test_the_shared_imagenette():
    imagenette = open_dataset(None, IMAGENETTE)
    assert (len(imagenette.train), len(imagenette.val), len(imagenette.classes)) == (1500, 600, 10)
    assert (imagenette.classes[0], imagenette.native_size) == ("n01440764", None)


# --- on the device ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """As much of a Preprocessing as batches need."""

    input_size: tuple[int, int, int] = (3, 16, 16)
    mean: tuple[float, ...] = (0.5, 0.4, 0.3)
    std: tuple[float, ...] = (0.2, 0.3, 0.4)
    interpolation: str = "bicubic"


def coloured(count: int = 30, side: int = 16) -> Split:
    """Noise, so that every window and every mirror image is another."""
    noise = np.random.default_rng(0).integers(1, 256, (count, side, side, 3), dtype=np.uint8)
    return Split([Image.fromarray(pixels) for pixels in noise], list(range(count)), lambda image: image)


def test_windows_on_the_device_are_those_that_pillow_cuts_and_mirrors():
    split, preprocessing = coloured(), Input()
    cache = cache_on_device(split, preprocessing, 0.5, torch.device("cpu"))
    seeds = [0, 2**32 - 1, *np.random.default_rng(1).integers(0, 2**32, 28).tolist()]
    (found, targets), *_ = cache.batches([list(range(30))], seeds)
    assert targets.tolist() == split.targets and found.shape == (30, 3, 16, 16)
    seen = set()
    for index, seed in enumerate(seeds):
        left, top, mirrored = seed % 5 - 2, seed // 5 % 5 - 2, seed // 25 < 0.5 * (2**32 // 25)
        seen.add((left, top, mirrored))
        window = split.items[index].crop((left, top, left + 16, top + 16))
        window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else window
        expected = (np.asarray(window).astype(np.float32) / 255 - preprocessing.mean) / preprocessing.std
        np.testing.assert_allclose(found[index].permute(1, 2, 0), expected, rtol=1e-5, atol=1e-6)
    assert len(seen) > 20


def test_draws_on_the_device_are_even():
    images = torch.zeros(20_000, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 4, 3] = 1
    cache = DeviceCache(images, [0] * 20_000, 0.25, Input(mean=(0.0,), std=(1.0,)))
    seeds = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, 20_000))
    where = cache.augmented(images, seeds).flatten(1).int().argmax(1)
    rows, columns = (np.bincount(each, minlength=8) / 20_000 for each in (where // 8, where % 8))
    np.testing.assert_allclose(rows[3:6], 1 / 3, atol=0.015)
    expected = 0.75 * np.eye(8)[2:5].mean(0) + 0.25 * np.eye(8)[[5, 4, 3]].mean(0)
    np.testing.assert_allclose(columns, expected, atol=0.015)


def test_batches_from_the_device_resume_and_are_shared_out_like_others(monkeypatch):
    split, preprocessing = coloured(), Input()
    cache = cache_on_device(split, preprocessing, 0.5, torch.device("cpu"))

    def epoch(start: int = 0, accumulate: int = 1) -> list[torch.Tensor]:
        batches = Batches(split, None, batch_size=8, seed=3, accumulate=accumulate, cache=cache)
        return [images for images, _ in batches.epoch(1, start)]

    whole = epoch()
    assert len(whole) == 3 and all(torch.equal(a, b) for a, b in zip(whole[1:], epoch(1), strict=True))
    parts = epoch(2, accumulate=2)
    assert sorted(torch.cat(parts).sum((1, 2, 3)).tolist()) == sorted(whole[2].sum((1, 2, 3)).tolist())


@pytest.mark.parametrize(
    ("change", "limit", "fit"),
    [({}, 1, True), ({}, 1e-6, False), ({"crop": "rrc"}, 1, False), ({"reprob": 0.1}, 1, False)],
)
def test_what_is_kept_on_the_device(change, limit, fit):
    augment = Augment(**{"crop": "pad", "hflip": 0.5} | change)
    dataset = ImageDataset("x", {}, ("a",), coloured(), coloured(), "", native_size=16)
    assert fits_on_device(dataset, dataset.train, Input(), augment, limit) == fit
    assert not fits_on_device(dataset, dataset.train, Input((3, 32, 32)), augment, limit)


def test_scored_batches_are_read_once_where_they_are_kept():
    split = coloured(10)
    calls = []
    counting = Split(split.items, split.targets, lambda image: calls.append(1) or image)
    batches = ScoreBatches(counting, open_digits_input(), 4, keep=True)
    next(iter(batches))
    first, second = list(batches), list(batches)
    assert len(calls) <= 14 and all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


def open_digits_input():
    from binarize_cli.models.load import load
    from binarize_cli.models.names import resolve

    return load(resolve("digits_vit"), pretrained=False).preprocessing
