"""`bnnpp methods` and `bnnpp recipes`, called as a user calls them but for the process."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from binarize_cli import recipe_io
from binarize_cli.cli import recipes
from binarize_cli.cli.methods import methods
from binarize_cli.errors import InputError
from binarize_cli.quantizers.method import UPDATES
from binarize_cli.quantizers.methods import METHODS

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(methods)
app.add_typer(recipes.app, name="recipes")


def run(*words: str) -> str:
    """What a command prints on stdout."""
    outcome = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def refused(*words: str) -> str:
    with pytest.raises(InputError) as caught:
        run(*words)
    return str(caught.value)


def logistic(z):
    return 1 / (1 + np.exp(-z))


def sign_swish(x, mu):
    return 2 * logistic(mu * x) * (1 + mu * x * (1 - logistic(mu * x))) - 1


def difference(f, x, step=1e-6):
    return (f(x + step) - f(x - step)) / (2 * step)


def test_table_lists_the_registry_exactly():
    rows = [
        line.split()[0] for line in run("methods").splitlines() if line.startswith(" ") and line[1:2].strip()
    ]
    assert [row for row in rows if row in METHODS] == list(METHODS)
    assert [m["name"] for m in json.loads(run("methods", "--json"))] == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_card(name):
    method, text = METHODS[name], run("methods", name)
    for part in (method.title, method.forward_formula, UPDATES[method.update], method.when, method.source):
        assert part in text
    assert "F(x)" in text and ("B(x) / peak" in text) == (method.backward is not None)
    assert "\x1b" not in text, "no colours in a pipe"


def test_card_as_json():
    card = json.loads(run("methods", "bnn++", "--json"))
    assert card["schedules"]["mu"] == {"start": 5.0, "end": 60.0, "shape": "log"}
    assert card["normalize"] == METHODS["bnn++"].normalize
    assert json.loads(run("methods", "ptq", "--json"))["B"] is None


MIDDLE = 5**0.5 * 60**0.5  # mu of bnn++ in the middle of its schedule


@pytest.mark.parametrize("spelling", [["--at", "-1,-0.03,0,0.03,1"], ["--at=-1,-0.03,0,0.03,1"]])
def test_values_of_bnnpp(spelling):
    found = json.loads(run("methods", "bnn++", *spelling, "--progress", "0.5", "--json"))
    x = np.array([-1, -0.03, 0, 0.03, 1])
    assert found["x"] == x.tolist() and found["progress"] == 0.5 and found["parameters"] == {"mu": MIDDLE}
    np.testing.assert_allclose(found["F"], sign_swish(x, MIDDLE), rtol=0, atol=1e-12)
    slope = difference(lambda x: sign_swish(x, MIDDLE), x)
    np.testing.assert_allclose(found["B"], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "F", "B"),
    [
        ("float", lambda x: x, np.ones_like),
        ("bc", lambda x: np.where(x < 0, -1, 1), np.ones_like),
        ("bnn", lambda x: np.where(x < 0, -1, 1), lambda x: (np.abs(x) <= 1) * 1.0),
        ("pc", lambda x: np.where(x < 0, -1, 1) * np.minimum(1, 0.01 + np.abs(x)), np.ones_like),
    ],
)
def test_values_at_the_start(name, F, B):
    found = json.loads(run("methods", name, "--at", "-2,-0.5,0,0.25,1", "--progress", "0", "--json"))
    x = np.array([-2, -0.5, 0, 0.25, 1])
    np.testing.assert_allclose(found["F"], F(x), rtol=0, atol=1e-15)
    np.testing.assert_allclose(found["B"], B(x), rtol=0, atol=1e-15)


def test_values_of_ptq_have_no_slope():
    found = json.loads(run("methods", "ptq", "--at", "-1,0", "--json"))
    assert found["F"] == [-1, 1] and found["B"] is None and found["progress"] == 1


def test_values_as_a_table():
    text = run("methods", "bnn++", "--at", "-1,0", "--progress", "0")
    assert "bnn++ at progress 0, mu = 5" in text
    assert f"{sign_swish(-1.0, 5.0):.9g}" in text


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plot(tmp_path, suffix):
    path = tmp_path / f"bnnpp.{suffix}"
    assert run("methods", "bnn++", "--plot", str(path)) == f"{path}\n"
    assert path.stat().st_size > 5_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bn++"], "Did you mean 'bnn++'"),
        (["bnn++", "--at", "1,two"], "'two' is not a number"),
        (["bnn++", "--at", "1,nan"], "'nan' is not a number"),
        (["bnn++", "--at", ""], "'' is not a number"),
        (["bnn++", "--at", "1", "--progress", "1.5"], "between 0 and 1"),
        (["bnn++", "--progress", "0.5"], "goes with --at"),
        (["--at", "1"], "goes with one method"),
        (["--plot", "a.png"], "goes with one method"),
        (["bnn++", "--plot", "a.png", "--at", "1"], "mutually exclusive"),
        (["bnn++", "--plot", "a.gif"], "unknown kind of picture '.gif'"),
        (["bnn++", "--plot", "/nowhere/a.png"], "/nowhere/a.png: cannot be written"),
    ],
)
def test_bad_words(words, message):
    assert message in refused("methods", *words)


@pytest.mark.parametrize("words", [["methods"], ["methods", "bnn++"], ["recipes", "ls"]])
def test_nothing_heavy_is_imported(words):
    program = (
        "import sys; from binarize_cli.cli import app;"
        f"app({words!r}, standalone_mode=False);"
        "sys.exit(' '.join({'torch', 'timm', 'matplotlib'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_recipes_ls():
    listed = json.loads(run("recipes", "ls", "--json"))
    assert [row["name"] for row in listed] == recipe_io.names()
    assert [line.split()[0] for line in run("recipes", "ls").splitlines()] == recipe_io.names()
    assert all(row["description"] for row in listed)


def test_recipes_show():
    text = (recipe_io.folder() / "default.yaml").read_text()
    assert run("recipes", "show", "default") == text
    full = recipe_io.parse(run("recipes", "show", "default", "--full"), "shown").validate()
    assert full == recipe_io.read("default").validate()
    assert "bnnpp recipes ls" in refused("recipes", "show", "defalt")


def test_recipes_cp(tmp_path):
    text = (recipe_io.folder() / "default.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    assert run("recipes", "cp", "default", str(mine)) == f"{mine}\n"
    assert mine.read_text() == text
    run("recipes", "cp", "default", str(tmp_path))
    assert (tmp_path / "default.yaml").read_text() == text
    mine.write_text("method: bc\n")
    assert "exists already" in refused("recipes", "cp", "default", str(mine))
    assert mine.read_text() == "method: bc\n"
    assert "cannot be written" in refused("recipes", "cp", "default", str(tmp_path / "no" / "mine.yaml"))


def test_recipes_validate(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("method: bc\ntrain:\n  epochs: 3\n")
    assert run("recipes", "validate", str(mine)) == f"{mine}: ok (method bc, task bw, 3 epochs)\n"
    mine.write_text("method: bcc\ntrain:\n  epoch: 3\n")
    message = refused("recipes", "validate", str(mine))
    assert "2 faults" in message and f"{mine}:1" in message and f"{mine}:3" in message
