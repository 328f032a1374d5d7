"""Recipes: strict, every fault at once, each with its place; and what a valid recipe comes to."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binarize_cli import recipe_io as recipes
from binarize_cli.errors import InputError
from binarize_cli.quantizers.methods import METHODS
from binarize_cli.quantizers.schedules import Schedule, constant
from binarize_cli.recipe import Recipe, effective_normalize, effective_schedules
from binarize_cli.recipe_io import parse, parse_value


def valid(text: str) -> Recipe:
    return parse(text, "r.yaml").validate()


def faults(draft) -> list[str]:
    """The lines of the message, one a fault, without the head and the hint."""
    with pytest.raises(InputError) as caught:
        draft.validate()
    lines = str(caught.value).splitlines()
    of_methods = all(re.search(r": (activation\.)?method: ", line) for line in lines[1:-1])
    shown = "methods' lists the methods." if of_methods else "recipes show default --full' shows every key."
    assert lines[-1].strip() == f"'bnnpp {shown}"
    count = 1 if "a fault in the recipe" in lines[0] else int(re.search(r"(\d+) faults", lines[0])[1])
    assert count == len(lines) - 2
    return [line.strip() for line in lines[1:-1]]


def fault(text: str) -> str:
    """The one fault of a recipe."""
    (only,) = faults(parse(text, "r.yaml"))
    return only


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(text, "r.yaml")
    return str(caught.value)


# --- what is valid ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_that_comes_with_the_tool_is_valid(name):
    checked = recipes.read(name).validate()
    assert checked.description
    assert not name.startswith("paper/") or name.rpartition("/")[2] == checked.method


@pytest.mark.parametrize("method", ["bc", "bnn", "bnn+", "bnn++", "pc"])
def test_a_paper_recipe_is_the_literal_form(method):
    checked = recipes.read(f"paper/{method}").validate()
    literal = {"bnn+": {"mu": (5, 5)}, "bnn++": {"mu": (5, 30)}, "pc": {"rho": (0.01, 10)}}
    found = {name: (s.start, s.end) for name, s in effective_schedules(checked).items()}
    assert found == literal.get(method, {}) and checked.method == method
    assert (checked.quantizer.scale, effective_normalize(checked)) == ("none", None)
    assert (checked.distill.weight, checked.train.harden) == (0, 0)


def test_an_empty_recipe_is_every_default():
    assert valid("") == valid("# nothing but words") == Recipe()


def test_numbers_are_read_as_people_write_them():
    read = valid("train: {lr: 1e-4, weight_decay: 5E-2, min_lr: 0, epochs: 3, clip_grad: 2.}").train
    assert (read.lr, read.weight_decay, read.min_lr, read.epochs) == (1e-4, 0.05, 0, 3)
    assert [parse_value(t) for t in ("1e-4", "-2e3", "1e-4x", "12", "null")] == [
        1e-4,
        -2000,
        "1e-4x",
        12,
        None,
    ]


def test_a_bare_number_is_a_schedule_that_stays():
    checked = valid("quantizer: {schedules: {mu: 7}}")
    assert effective_schedules(checked) == {"mu": constant(7.0)}


@settings(max_examples=30, deadline=None)
@given(
    lr=st.floats(1e-30, 1e30),
    words=st.text(st.characters(exclude_categories=["C"]), max_size=40),
    patterns=st.lists(st.sampled_from(["first", "head", "blocks.*", "null", "1e-4", "true", "'", "#x"])),
    mu=st.floats(0.01, 1e6),
    shape=st.sampled_from(["linear", "log"]),
    normalize=st.none() | st.just("none") | st.floats(1e-6, 1e6),
)
def test_as_yaml_holds_the_whole_recipe(lr, words, patterns, mu, shape, normalize):
    before = Recipe.model_validate(
        {
            "description": words,
            "quantizer": {
                "normalize": normalize,
                "schedules": {"mu": {"start": mu, "end": 3, "shape": shape}},
            },
            "layers": {"keep_float": patterns},
            "train": {"lr": lr},
        }
    )
    assert valid(before.as_yaml()) == before


@pytest.mark.parametrize("method", METHODS)
def test_schedules_and_n_in_force_are_the_methods_own_unless_the_recipe_names_them(method):
    plain = Recipe(method=method)
    assert effective_schedules(plain) == dict(METHODS[method].schedules)
    assert effective_normalize(plain) == METHODS[method].normalize > 0


def test_a_recipe_replaces_a_schedule_and_n():
    checked = valid("quantizer: {normalize: 2.5, schedules: {mu: {start: 1, end: 100, shape: log}}}")
    assert effective_schedules(checked) == {"mu": Schedule(1.0, 100.0, "log")}
    assert effective_normalize(checked) == 2.5
    assert effective_normalize(valid("quantizer: {normalize: none}")) is None


# --- faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}", "r.yaml:1: unknown key 'trian'. Did you mean 'train'?"),
        ("\ntrain:\n  epoch: 3", "r.yaml:3: unknown key 'train.epoch'. Did you mean 'epochs'"),
        (
            "distill:\n  temprature: 3",
            "r.yaml:2: unknown key 'distill.temprature'. Did you mean 'temperature'?",
        ),
        (
            "quantizer:\n  schedules:\n    mu:\n      start: 1\n      end: 2\n      shap: log",
            "r.yaml:6: unknown key 'quantizer.schedules.mu.shap'. Did you mean 'shape'?",
        ),
        ("pack:\n  zzz: 1", "r.yaml:2: unknown key 'pack.zzz'. Known here: float_dtype."),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_a_guess_at_every_level(text, message):
    assert fault(text).startswith(message)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train: {lr: '0.1'}", "train.lr", "'0.1'"),
        ("train: {lr: fast}", "train.lr", "'fast'"),
        ("train: {epochs: true}", "train.epochs", "True"),
        ("train: {epochs: 3.0}", "train.epochs", "3.0"),
        ("train: {lr: true}", "train.lr", "True"),
        ("train: {opt: 3}", "train.opt", "3"),
        ("train: {reestimate_batchnorm: 1}", "train.reestimate_batchnorm", "1"),
        ("train: {epochs: -1}", "train.epochs", "-1"),
        ("train: {ema: 1.0}", "train.ema", "1.0"),
        ("train: 3", "train", "3"),
        ("train:", "train", "None"),
        ("layers: {keep_float: first}", "layers.keep_float", "'first'"),
        ("layers: {keep_float: [first, 3]}", "layers.keep_float", "3"),
        ("task: bww", "task", "'bww'"),
        ("quantizer: {scale: chanel}", "quantizer.scale", "'chanel'"),
        ("quantizer: {schedules: {mu: fast}}", "quantizer.schedules.mu", "'fast'"),
        (
            "quantizer: {schedules: {mu: {start: 0, end: 2, shape: log}}}",
            "quantizer.schedules.mu.shape",
            "'log'",
        ),
        ("method: 3", "method", "3"),
        ("train: {lr: .nan}", "train.lr", "nan"),
    ],
)
def test_a_wrong_value_is_one_fault_that_shows_key_and_value(text, key, value):
    message = fault(text)
    assert message.startswith(f"r.yaml:1: {key}: ") and message.endswith(f"(got {value})")


@pytest.mark.parametrize("text", ["train: {lr: .inf}", "quantizer: {schedules: {mu: .nan}}"])
def test_numbers_are_finite(text):
    assert "should be a finite number" in fault(text)


@pytest.mark.parametrize(
    "text",
    ["quantizer: {normalize: -1}", "augment: {hflip: 3}", "quantizer: {schedules: {mu: true}}"],
)
def test_a_wrong_value_of_a_key_of_several_forms_is_told_on_lines_that_differ(text):
    told = faults(parse(text, "r.yaml"))
    assert len(told) == len(set(told)) and all(line.startswith("r.yaml:1: ") for line in told)


def test_all_faults_come_at_once_in_the_order_of_the_lines():
    text = (
        "method: bnn\ntrain:\n  epoch: 3\n  lr: x\n" + "\n" * 5 + "task: bw2\nlayers:\n  keep: []\nzzz: 1\n"
    )
    told = faults(parse(text, "r.yaml"))
    assert [int(line.split(":")[1]) for line in told] == [3, 4, 10, 12, 13]


def test_an_unknown_method_is_a_fault_with_a_guess():
    message = fault("train: {epochs: 3}\nmethod: bnn+++")
    assert message.startswith("r.yaml:2: method: no method is named 'bnn+++'. Did you mean 'bnn++'")
    assert "Did you mean" not in fault("method: quantum")


@pytest.mark.parametrize(("method", "own"), [("bc", "none"), ("pc", "rho")])
def test_a_schedule_of_a_parameter_the_method_lacks_is_a_fault(method, own):
    message = fault(f"method: {method}\nquantizer:\n  schedules: {{mu: 5}}")
    what = f"{method} has no parameter 'mu' (its parameters: {own})"
    assert message == f"r.yaml:3: quantizer.schedules.mu: {what}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("activation: {schedules: {rho: 1}}", "rho: bnn++ has no parameter 'rho' (its parameters: mu)"),
        (
            "activation: {method: bc, schedules: {mu: 1}}",
            "mu: bc has no parameter 'mu' (its parameters: none)",
        ),
        (
            "method: pc++\nquantizer: {map: parq, transform: identity}\nactivation: {schedules: {mu: 1}}",
            "mu: pc++ has no parameter 'mu' (its parameters: s)",
        ),
    ],
    ids=["the method of the weights", "one of its own", "parts of the weights' quantizer"],
)
def test_a_schedule_of_a_parameter_the_inputs_method_lacks_is_a_fault(text, words):
    assert fault(text).endswith(f"activation.schedules.{words}")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("bnn-", "no method is named 'bnn-'. Did you mean"),
        ("bnn-plus", "no method is named 'bnn-plus'. Did you mean 'bnn+'"),
        ("BNNplusplus", "no method is named 'BNNplusplus'. Did you mean 'bnn++'"),
        ("pc++", "pc++ takes its parts from `quantizer`"),
        ("ptq", "ptq has no pair (F, B) to train with"),
        ("float", "float has no pair (F, B) to train with"),
    ],
)
def test_a_method_that_inputs_cannot_have_is_a_fault(method, words):
    message = fault(f"task: bwa\nactivation:\n  padding: plus\n  method: {method}")
    assert message.startswith(f"r.yaml:4: activation.method: {words}")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("train:\n  lr: 1\n  epochs: 2\n  lr: 3\n", 4, "the key 'train.lr' is repeated"),
        ("method: bc\nmethod: pc\n", 2, "the key 'method' is repeated"),
        ("method: bc\ntrain: [1, 2\nlayers: {}\n", 3, "not YAML"),
        ("method: bc\n\ttrain: 3\n", 2, "not YAML"),
        ("a: 1\n? [b, c]\n: 2\n", 2, "not YAML"),
        ("method: !!python/object/apply:os.getcwd []\n", 1, "not YAML"),
        ("a: 1\n---\nb: 2\n", 2, "not YAML"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(text, line, words):
    assert refused(text).startswith(f"r.yaml:{line}: {words}")


@pytest.mark.parametrize("text", ["- a\n- b", "method", "3"])
def test_what_is_no_mapping_is_refused(text):
    assert refused(text) == "r.yaml: a recipe is a mapping of keys to values"


def test_a_recipe_that_contains_itself_is_refused():
    with pytest.raises(InputError):
        valid("train: &t {epochs: *t}")


# --- flags and --set -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("quantizer.schedules.mu", "bc has no parameter 'mu'"),
        ("quantizer.map", "bc has no map to choose"),
        ("quantizer.transform", "bc has no transform to choose"),
        ("activation.schedules.mu", "bc has no parameter 'mu'"),
    ],
)
def test_a_flag_that_does_not_go_with_the_method_does_not_blame_the_recipe(key, words):
    draft = parse("quantizer: {scale: layer}\nactivation: {padding: plus}", "r.yaml")
    draft.set("method", "bc", "--method")
    draft.set(key, "erf" if key == "quantizer.transform" else 5 if key.endswith("mu") else "lq", "--set")
    with pytest.raises(InputError) as caught:
        draft.validate()
    assert str(caught.value).startswith(f"--set: {key}: {words}")


def test_a_flag_overrides_the_recipe_and_creates_sections():
    draft = parse("train: {lr: 1.0, epochs: 3}", "r.yaml")
    draft.set("train.lr", 0.5, place="--lr")
    draft.set("quantizer.schedules.mu", {"start": 1, "end": 9.0}, place="--set")
    draft.set("method", "bnn+", place="--method")
    checked = draft.validate()
    assert (checked.train.lr, checked.train.epochs, checked.method) == (0.5, 3, "bnn+")
    assert effective_schedules(checked) == {"mu": Schedule(1, 9)}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.lr", -1, "--set: train.lr: Input should be greater than 0 (got -1)"),
        ("train.lrr", 1, "--set: unknown key 'train.lrr'. Did you mean 'lr'?"),
        ("trian.lr", 1, "--set: unknown key 'trian'. Did you mean 'train'?"),
        ("zzz", 1, "--set: unknown key 'zzz'. Known here: description"),
        (
            "quantizer.schedules.mu",
            {"start": 1, "end": 2, "shpae": "log"},
            "--set: unknown key 'quantizer.schedules.mu.shpae'. Did you mean 'shape'?",
        ),
        ("method", "bnnn", "--set: method: no method is named 'bnnn'. Did you mean 'bnn'"),
    ],
)
def test_a_fault_of_a_flag_names_the_flag(key, value, message):
    draft = parse("train: {lr: 1.0}", "r.yaml")
    draft.set(key, value, place="--set")
    with pytest.raises(InputError) as caught:
        draft.validate()
    assert str(caught.value).startswith(message)  # and no recipe is blamed


def test_a_flag_does_not_go_into_what_is_no_section():
    with pytest.raises(InputError, match=r"--set: 'method.name' goes into 'method', which is not a section"):
        parse("method: bc", "r.yaml").set("method.name", 1, place="--set")


def test_a_broken_value_of_set_is_the_users_fault():
    with pytest.raises(InputError):
        parse_value("[1, 2")


# --- reading ---------------------------------------------------------------------------------------------


def test_an_unknown_recipe_is_refused_with_a_guess():
    with pytest.raises(InputError, match=r"no recipe is named 'defualt'\n.*Did you mean 'default'\?"):
        recipes.read("defualt")
    with pytest.raises(InputError, match=r"mine\.yaml: no such recipe file"):
        recipes.read("mine.yaml")


def test_a_recipe_is_read_from_a_file_by_its_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("description: für mich\nmethod: pc\n", encoding="utf-8")
    assert recipes.read(str(path)).validate() == Recipe(method="pc", description="für mich")
    path.write_text("methud: pc\n")
    assert faults(recipes.read(str(path)))[0].startswith(f"{path}:1: unknown key 'methud'")
    path.write_bytes(b"method: \xff\n")
    with pytest.raises(InputError, match=r"mine\.yaml: cannot be read"):
        recipes.read(str(path))


def test_an_unknown_method_is_told_once_whatever_section_stands_beside_it():
    text = "method: bnnx\nactivation: {padding: plus}\nquantizer: {scale: layer}\n"
    assert fault(text).startswith("r.yaml:1: method: no method is named 'bnnx'. Did you mean")
