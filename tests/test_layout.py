"""House rules: a file imports only from rooms earlier in a model's journey, and says what it is for."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "binarize_cli"

JOURNEY = (
    "device",
    "models",
    "job",
    "data",
    "binarize",
    "evaluation",
    "training",
    "packed",
    "export",
    "report",
)
ABOVE = ("theory", "api", "setup", "pipeline", "bench", "analysis", "cli", "__main__")
# each imports those before it too
GROUND = (
    "",
    "quantizers",
    "recipe",
    "recipe_io",
    "console",
    "dotted",
    "errors",
    "files",
    "run_folder",
    "ranks",
    "peer_watchdog",
    "slurm",
    "machine_code",
    "compiled",
    "threads",
)  # "" is the package itself
ORDER = {room: place for place, room in enumerate((*JOURNEY, *ABOVE), start=1)} | dict.fromkeys(GROUND, 0)

HEAVY = {
    *("torch", "torchvision", "timm", "matplotlib", "huggingface_hub", "PIL", "safetensors", "jinja2"),
    *("numba", "llvmlite", "onnx", "onnxruntime", "onnxscript", "qonnx"),
}
TOP = {
    *("binarize_cli", "bnnpp", "tests", "recipes", "docs"),
    *("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
}

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(file.relative_to(PACKAGE)) for file in FILES]


def room_of(module: str) -> str:
    """`binarize_cli.data.folder` -> `data`."""
    return f"{module}.".split(".")[1]


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import below a node; `from package import x` is `package.x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def rooms_used(file: Path) -> list[tuple[int, str]]:
    """(line, room) of every import of our own."""
    found = []
    for line, module in imported(parse(file)):
        if module.split(".")[0] == "binarize_cli":
            room = room_of(module)
            found.append((line, room if (PACKAGE / room).is_dir() or room in ORDER else ""))
    return found


def test_every_room_has_its_place_in_the_order():
    rooms = {room_of("binarize_cli." + name.removesuffix(".py").replace("/", ".")) for name in NAMES}
    assert rooms - {"__init__"} <= set(ORDER), "a new room needs a place in the journey"
    assert {"models", "data", "binarize", "training", "packed", "report", "quantizers"} <= rooms


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_file_imports_only_from_rooms_earlier_in_the_journey_or_its_own(file):
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    own = "" if parts[0] == "__init__" else parts[0]
    late = [
        f"line {line}: {own or 'the package'} imports {room}"
        for line, room in rooms_used(file)
        if room != own and ORDER[room] >= max(ORDER[own], 1)
    ]
    assert not late


def test_the_order_is_really_looked_at():
    """The rule sees imports inside functions and under TYPE_CHECKING, and knows that some rooms are used."""
    used = {(file.relative_to(PACKAGE).parts[0], room) for file in FILES for _, room in rooms_used(file)}
    assert {("training", "binarize"), ("data", "models"), ("cli", "pipeline")} <= used
    assert ("models", "data") not in used


def outside_functions(tree: ast.Module) -> ast.Module:
    """The module without the bodies of its functions: what runs when it is imported."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
            node.body = [ast.Pass()]
            return node

    return Strip().visit(tree)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cli/")])
def test_a_command_imports_nothing_heavy_before_it_is_called(name):
    allowed = {"cli", *GROUND}
    for line, module in imported(outside_functions(parse(PACKAGE / name))):
        library = module.split(".")[0]
        assert library not in HEAVY, f"line {line}: {module}"
        if library == "binarize_cli":
            room = room_of(module)
            assert room in allowed or not (PACKAGE / room).exists(), f"line {line}: {module}"
            assert room != "pipeline", f"line {line}: {module}"


def documented(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """(name, node) of a module and of every class, function and method in it that people may call."""
    yield "the module", tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    yield f"{node.name}.{member.name}", member


def is_trivial(node: ast.AST) -> bool:
    """A function of two lines under a name that says it all, or one whose meaning is PyTorch's."""
    if not isinstance(node, ast.FunctionDef):
        return False
    return len(node.body) <= 2 or node.name in ("forward", "backward")


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_everything_public_says_what_it_is_for(file):
    silent = [
        name for name, node in documented(parse(file)) if not ast.get_docstring(node) and not is_trivial(node)
    ]
    assert not silent


NO_VERBS = {"a", "all", "an", "each", "every", "how", "in", "its", "of", "one"}
NO_VERBS |= {"raises", "the", "this", "what", "where", "whether", "which"}


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_function_says_what_it_does_with_a_verb(file):
    """A property is a thing: its docstring may name that."""
    wrong = []
    for node in ast.walk(parse(file)):
        text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if text and not any("property" in ast.unparse(each) for each in node.decorator_list):
            first = text.split()[0]
            if not first[0].isupper() or first.lower() in NO_VERBS:
                wrong.append((node.name, text.splitlines()[0]))
    assert not wrong


def test_the_top_of_the_repository_holds_only_what_is_agreed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP


def test_every_file_of_tests_is_about_something():
    for file in sorted((ROOT / "tests").glob("*.py")):
        assert ast.get_docstring(parse(file)), file.name
