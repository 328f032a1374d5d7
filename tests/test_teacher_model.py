"""A teacher that is another model: its classes, its normalisation, its logits."""

from __future__ import annotations

import pytest
import torch

from binarize_cli.cli.binarize import run_job
from binarize_cli.errors import InputError
from binarize_cli.job import Job
from binarize_cli.models.load import Preprocessing, load
from binarize_cli.models.names import resolve
from binarize_cli.models.teacher import Renormalise, load_teacher
from binarize_cli.pipeline import run_pipeline
from binarize_cli.recipe_io import read
from binarize_cli.training.stop import StopRequest

DIGITS = tuple("0123456789")


def _student() -> Preprocessing:
    return load(resolve("digits_vit")).preprocessing


def test_a_teacher_gives_the_logits_of_the_students_images():
    own = load(resolve("digits_resnet"))
    student = _student()
    images = torch.rand(4, *student.input_size)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (own.preprocessing.mean, own.preprocessing.std))
    expected = own.net((images - mean) / std)
    mean, std = torch.tensor(student.mean).view(-1, 1, 1), torch.tensor(student.std).view(-1, 1, 1)
    teacher = load_teacher("digits_resnet", None, own.classes or DIGITS, student)
    torch.testing.assert_close(teacher.net((images - mean) / std), expected, atol=1e-5, rtol=1e-5)


def test_renormalise_undoes_one_normalisation_and_applies_another():
    given = Preprocessing((2, 1, 1), "bilinear", (0.5, 0.25), (0.5, 0.1), 1.0, "center")
    wanted = Preprocessing((2, 1, 1), "bilinear", (0.0, 0.5), (1.0, 0.2), 1.0, "center")
    of_pixels_75_and_35 = torch.tensor([0.5, 1.0]).view(1, 2, 1, 1)
    expected = torch.tensor([0.75, -0.75]).view(1, 2, 1, 1)  # (0.75 - 0) / 1 and (0.35 - 0.5) / 0.2
    torch.testing.assert_close(Renormalise(given, wanted)(of_pixels_75_and_35), expected)


def test_a_teacher_of_other_classes_or_another_size_is_refused():
    with pytest.raises(InputError, match="1 of the 2 classes are not among its labels: cat"):
        load_teacher("digits_resnet", None, ("0", "cat"), _student())
    other = Preprocessing((3, 64, 64), "bilinear", (0.5,) * 3, (0.5,) * 3, 1.0, "center")
    with pytest.raises(InputError, match="the model that becomes binary takes 3 x 64 x 64"):
        load_teacher("digits_resnet", None, DIGITS, other)


def _run(tmp_path, **sets):
    draft = read("default")
    for key, value in {"train.epochs": 1, "train.batch_size": 256, **sets}.items():
        draft.set(key, value, "--set")
    name = resolve("digits_vit")
    job = Job(command="", model=name, recipe=draft.validate(), dataset="digits", output=tmp_path / "run")
    return run_pipeline(job, StopRequest())


def test_a_run_learns_from_another_teacher_and_says_so(tmp_path, capsys):
    folder, document = _run(tmp_path, **{"distill.teacher": "digits_resnet"})
    assert "teacher digits_resnet (embedded in bnnpp), top-1 99." in capsys.readouterr().err
    assert document["recipe"]["distill"]["teacher"] == "digits_resnet"
    assert '"teacher"' in folder.identity.read_text()
    taught = document["accuracy"]["packed"]["loss"]
    again = _run(tmp_path / "own")[1]
    assert again["accuracy"]["packed"]["loss"] != taught


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"distill.blocks": 1.0}, "the blocks of another teacher cannot be compared"),
        ({"distill.weight": 0.0}, "its share of the loss is 0"),
    ],
)
def test_what_another_teacher_cannot_do_is_an_error(tmp_path, sets, message):
    with pytest.raises(InputError, match=message):
        _run(tmp_path, **{"distill.teacher": "digits_resnet", **sets})


def test_weights_of_no_teacher_are_an_error(tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"")
    with pytest.raises(InputError, match="no teacher is named") as told:
        run_job("", {"model": "digits_vit", "teacher_weights": weights})
    assert told.value.where == "--teacher-weights"
