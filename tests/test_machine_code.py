"""Machine code of kernels: compiled once, found again on disk, and made again if anything is in doubt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from binarize_cli import machine_code
from binarize_cli.errors import InputError
from binarize_cli.machine_code import ROOMS, Ready, kernel, part, specialised


@part
def scaled(x, factor):
    return factor * x


def add_scaled(out, x, factor, between):
    for i in range(between[0], between[1]):
        out[i] += scaled(x[i], factor)


@pytest.fixture
def compiled(tmp_path, monkeypatch) -> list[str]:
    """A list that gets an entry whenever a kernel is compiled; machine code is kept in `tmp_path`."""
    names: list[str] = []
    compile = machine_code.Kernel._compile

    def noted(self, symbol, arguments):
        names.append(self.name)
        return compile(self, symbol, arguments)

    monkeypatch.setattr(machine_code.Kernel, "_compile", noted)
    monkeypatch.setattr(machine_code, "cache_folder", lambda: tmp_path)
    return names


def result(function=add_scaled, kind=np.float32) -> list[float]:
    """What a kernel does that this process has not called before: 1 + 2 x between 1 and 3."""
    out = np.ones(4, kind)
    kernel(function)(out, np.arange(4, dtype=kind), np.float32(2), (1, 3))
    return out.tolist()


def test_code_is_compiled_once_for_each_combination_of_types(compiled):
    assert [result(), result(), result(kind=np.float64)] == [[1, 3, 5, 1]] * 3
    assert compiled == ["add_scaled"] * 2


def test_a_damaged_file_is_compiled_again(compiled, tmp_path):
    result()
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], b""):
        file.write_bytes(damaged)
        assert result() == result() == [1, 3, 5, 1]
    assert len(compiled) == 4


def test_another_kernel_s_file_is_not_taken(compiled, tmp_path):
    def other(out, x, factor, between):
        out[0] = factor

    result(other)
    [file] = tmp_path.iterdir()
    file.rename(file.with_name(file.name.replace("other", "add_scaled")))
    assert result() == [1, 3, 5, 1]
    assert compiled == ["other", "add_scaled"]


def test_a_folder_that_cannot_be_written_is_no_obstacle(compiled, tmp_path, monkeypatch):
    def refuse(path):
        raise InputError("cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(machine_code, "atomic", refuse)
        assert result() == [1, 3, 5, 1]
        assert not list(tmp_path.iterdir())
        patch.setattr(machine_code, "cache_folder", lambda: None)
        assert result() == [1, 3, 5, 1]
    assert len(compiled) == 2


def test_changed_sources_have_another_folder(tmp_path, monkeypatch):
    package = Path(machine_code.__file__).parent
    for room in ROOMS:
        shutil.copytree(package / room, tmp_path / room)
    shutil.copy(machine_code.__file__, tmp_path)
    before = machine_code._state()
    monkeypatch.setattr(machine_code, "__file__", str(tmp_path / "machine_code.py"))
    assert machine_code._state() == before
    with (tmp_path / ROOMS[1] / "pack.py").open("a") as file:
        file.write("\n")
    assert machine_code._state() != before


def test_a_later_start_does_without_numba(tmp_path):
    program = (
        "import sys; import numpy as np; from binarize_cli.packed.kernels.int8 import bits_to_signs;"
        "bits, signs = np.array([[5]], np.uint8), np.zeros((1, 3), np.int8);"
        "bits_to_signs(bits, signs, 0, 1); print(signs.tolist(), 'numba' in sys.modules)"
    )
    words, environment = [sys.executable, "-c", program], os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [subprocess.run(words, env=environment, capture_output=True, text=True) for _ in range(2)]
    assert [done.stdout for done in runs] == ["[[1, -1, 1]] True\n", "[[1, -1, 1]] False\n"], runs[1].stderr


def test_names_are_given_to_specialised_kernels(compiled):
    out = np.ones(4, np.float32)
    specialised(add_scaled, "add_squares", scaled=part(lambda x, factor: x * x))(
        out, out, np.float32(2), (1, 3)
    )
    assert out.tolist() == [1, 2, 2, 1] and compiled == ["add_squares"]


def test_arguments_that_are_ready_are_those_given_one_by_one(compiled):
    both, out = kernel(add_scaled), np.ones(4, np.float32)
    both(Ready(out, np.arange(4, dtype=np.float32)), Ready(np.float32(2)), (1, 3))
    both(out, Ready(out, np.float32(2), (1, 2)))
    assert out.tolist() == [1, 9, 5, 1] and len(compiled) == 1


def test_what_kernels_cannot_do_is_refused(compiled):
    with pytest.raises(AssertionError, match="returns something"):
        kernel(lambda x: x)(1)
    for argument in (1.5, np.ones((2, 3))[:, 0], [1]):
        with pytest.raises(TypeError, match="no argument of a kernel"):
            kernel(add_scaled)(argument)
