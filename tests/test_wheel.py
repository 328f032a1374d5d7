"""The package as it is installed: what travels in the wheel, and that it works where nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from binarize_cli import __version__
from binarize_cli.recipe_io import names

ROOT = Path(__file__).parents[1]
LIGHT = ("typer", "rich", "pydantic", "pyyaml", "numpy")
MODELS = ("digits_vit", "digits_resnet")
PACKAGES = [name for name in ("binarize_cli", "bnnpp") if (ROOT / name).is_dir()]

pytestmark = pytest.mark.slow


def call(*words: object, cwd: Path, **more) -> subprocess.CompletedProcess:
    drop = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    env = {key: value for key, value in os.environ.items() if key not in drop}
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, **more)


@pytest.fixture(scope="module")
def uv() -> str:
    found = shutil.which("uv")
    if not found:
        pytest.skip("uv is not installed")
    return found


@pytest.fixture(scope="module")
def wheel(uv, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("dist")
    built = call(uv, "build", "--wheel", "--out-dir", place, ROOT, cwd=place)
    assert built.returncode == 0, built.stderr
    (wheel,) = place.glob("*.whl")
    return wheel


def test_the_wheel_holds_all_that_the_tool_reads(wheel):
    assert wheel.name == f"bnnpp-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = {info.filename: info.file_size for info in archive.infolist()}
    wanted = {
        *(f"binarize_cli/recipes/{name}.yaml" for name in names()),
        "binarize_cli/py.typed",
        "binarize_cli/report/template.html",
        "binarize_cli/report/style.css",
        "binarize_cli/data/assets/digits.csv.gz",
        *(f"binarize_cli/models/assets/{name}.safetensors" for name in MODELS),
        *(str(file.relative_to(ROOT)) for name in PACKAGES for file in (ROOT / name).rglob("*.py")),
    }
    assert {"binarize_cli/recipes/default.yaml", "binarize_cli/recipes/paper/bnn++.yaml"} <= wanted
    assert not wanted - held.keys()
    for name in MODELS:
        assert held[f"binarize_cli/models/assets/{name}.safetensors"] < 10**6, "each under 1 MB"
    packages = {name.split("/")[0] for name in held if ".dist-info/" not in name}
    assert packages == set(PACKAGES)
    (licence,) = (name for name in held if name.endswith(".dist-info/licenses/LICENSE"))
    assert held[licence] > 10_000, "the whole text"
    assert not [name for name in held if "__pycache__" in name or name.startswith("tests")]


def test_the_wheel_works_in_an_empty_environment(wheel, uv, tmp_path):
    environment = tmp_path / "env"
    assert (made := call(uv, "venv", environment, cwd=tmp_path)).returncode == 0, made.stderr
    install = (uv, "pip", "install", "--python", environment)
    for what in (LIGHT, ("--no-deps", wheel)):
        installed = call(*install, *what, cwd=tmp_path)
        assert installed.returncode == 0, installed.stderr
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    bnnpp = shutil.which("bnnpp", path=str(scripts))

    listed = call(bnnpp, "recipes", "ls", cwd=tmp_path)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == names()
    shown = call(bnnpp, "recipes", "show", "paper/bnn++", cwd=tmp_path)
    assert shown.stdout == (ROOT / "recipes" / "paper" / "bnn++.yaml").read_text()
    assert call(bnnpp, "--version", cwd=tmp_path).stdout == f"bnnpp {__version__}\n"
    misspelt = call(bnnpp, "binarize", "digits_vit", "--method", "bn++", cwd=tmp_path)
    assert misspelt.returncode == 2 and "'bnn++'" in misspelt.stderr
    python = call(scripts / "python", "-c", "import binarize_cli; print(binarize_cli.__file__)", cwd=tmp_path)
    assert Path(python.stdout.strip()).is_relative_to(environment)
