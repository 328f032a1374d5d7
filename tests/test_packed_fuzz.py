"""Mutated packed files through the command line, in one process under a memory limit; minutes long.

`pytest -m slow tests/test_packed_fuzz.py -s` prints the figures. BNNPP_FUZZ=N scales the numbers of files.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import Outcome
from test_packed_trust import GOLDEN, ZEROS, Parts, parts_of

from binarize_cli.packed.format import checksum, read, write

pytestmark = pytest.mark.slow
SCALE = float(os.environ.get("BNNPP_FUZZ", "1"))
MEMORY = 2**30  # bytes beside what the process has when it starts
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**7, 10**30, 0.0, 0.5, -0.0, 1e-300, 1e308, -1e9),
    *(
        "",
        "x",
        "a\nb\x1b[31m",
        "../../etc/passwd",
        "hf-hub:a/b",
        "bw",
        "bwa",
        "bwaa",
        "vit_giant_patch14_dinov2",
    ),
    *("timm", "torchvision", "fcn_resnet50", "swin_tiny_patch4_window7_224", "x" * 5000, "\ufffd", "0" * 64),
    *(
        [],
        {},
        [[]],
        [0],
        [1, 8, 8],
        [1, 100_000, 100_000],
        {"checkpoint_path": "evil.pth"},
        [{}],
        {"a": {"b": []}},
    ),
)


def leaves(tree, path=()):
    """(path, value) of all that is in a JSON tree, containers too."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key), value
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


def mutate_tree(tree: dict, draw: random.Random) -> dict:
    """One to three places of a JSON tree changed, taken away, doubled or nested."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        path, value = draw.choice(list(leaves(tree)) or [((), None)])
        if not path:
            return tree
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        way = draw.randrange(6)
        if way == 0:
            del parent[path[-1]]
        elif way == 1 and isinstance(parent, dict):
            parent[draw.choice(("surprise", "shape", "input", "shift", "", "\n"))] = copy.deepcopy(value)
        elif way == 2 and isinstance(parent, list):
            parent.append(copy.deepcopy(value))
        elif way == 3 and isinstance(value, int | float) and not isinstance(value, bool):
            parent[path[-1]] = draw.choice(
                (value + 1, value - 1, -value, value * 10, value / 3, float("nan"))
            )
        elif way == 4 and isinstance(value, str) and value:
            at = draw.randrange(len(value))
            parent[path[-1]] = value[:at] + draw.choice("\x00\nz9.é/") + value[at + 1 :]
        else:
            parent[path[-1]] = copy.deepcopy(draw.choice(VALUES))
    return tree


def mutate_bytes(whole: bytes, draw: random.Random) -> bytes:
    content = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(min(4096, len(content)))
        way = draw.randrange(5)
        if way <= 1:
            content[at] ^= 1 << draw.randrange(8)
        elif way == 2:
            content[at] = draw.randrange(256)
        elif way == 3:
            del content[at : at + draw.choice((1, 8, 1000))]
        else:
            content[at:at] = draw.randbytes(draw.choice((1, 8, 1000)))
        if not content:
            break
    return bytes(content)


def mutate_header(whole: bytes, draw: random.Random) -> bytes:
    """The table of tensors changed, in a header that is JSON of the right length."""
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.dumps(mutate_tree(json.loads(whole[8:end]), draw), separators=(",", ":")).encode()
    return len(header).to_bytes(8, "little") + header + whole[end:]


def mutate_document(parts: Parts, draw: random.Random, to: Path, resealed: bool) -> None:
    tree = mutate_tree(parts.document, draw)
    if resealed and isinstance(tree, dict):
        tree["sha256"] = ZEROS
    text = json.dumps(tree)
    if draw.random() < 0.02:
        text = "[" * 5000 + text
    if resealed:
        Parts(tree, parts.tensors).saved(to, text=text)
    else:
        Parts(tree, parts.tensors).saved(to, text=text.replace(ZEROS, "1" * 64))


@pytest.fixture
def limited():
    """No more than MEMORY of address space beside what there is."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def asked(monkeypatch) -> list:
    """The addresses on a network that the process asks for, and does not get."""
    addresses: list = []
    connect = socket.socket.connect

    def refuse(own, address):
        if own.family == socket.AF_UNIX:  # worker processes
            return connect(own, address)
        addresses.append(address)
        raise OSError("no network in this test")

    def unresolved(*words, **named):
        addresses.append(words)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    return addresses


def resident() -> int:
    """The most memory that this process has held so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(("command", "number"), [("inspect", 20_000), ("eval", 2_000)])
def test_a_mutated_file_is_refused_in_one_message_or_means_the_same(
    bnnpp, tmp_path, request, asked, command, number
):
    sources = []
    for name in ("digits_resnet-bw", "digits_resnet-bwa", "digits_vit-bwaa-attention"):
        old = GOLDEN / f"format1-{name}.safetensors"
        new = tmp_path / f"{name}.safetensors"
        write(new, read(old).document, read(old).tensors)
        sources += [(new, 2), (new, 2), (old, 1)]
    sources = sources[: 3 if command == "eval" else None]  # the fastest to score
    expected = {path: result_of(bnnpp(command, path, "--json")) for path, _ in sources}
    bnnpp("eval", sources[0][0])  # everything is imported before memory is counted
    request.getfixturevalue("limited")
    before = resident()
    draw, outcomes, messages, started = random.Random(0), Counter(), Counter(), time.perf_counter()
    for _ in range(int(number * SCALE)):
        source, written = draw.choice(sources)
        file = tmp_path / "mutated.safetensors"
        way = draw.choice(("bytes", "header", "document", "resealed"))
        if way == "bytes":
            file.write_bytes(mutate_bytes(source.read_bytes(), draw))
        elif way == "header":
            file.write_bytes(mutate_header(source.read_bytes(), draw))
        else:
            mutate_document(parts_of(source), draw, file, resealed=way == "resealed")
        try:
            left = bnnpp(command, file, "--json")
        except Exception as error:
            left = Outcome(1, "", f"Traceback of {error!r}")
        sealed = written == 2 and way != "resealed"
        outcome = judged(left, expected[source], sealed)
        if outcome.startswith("BAD"):
            kept = tmp_path.parent / f"bad-{len(outcomes)}-{draw.random()}.safetensors"
            kept.write_bytes(file.read_bytes())
            outcome = (
                f"{outcome} ({way} of {source.name}, kept as {kept}): {left.err[-1500:]}{left.out[:200]}"
            )
        outcomes[f"{way}, format {written}: {outcome}"] += 1
        if left.code == 2:
            messages[left.err.split(": ", 2)[-1][:40]] += 1
    print(f"\n{command}: {sum(outcomes.values())} files in {time.perf_counter() - started:.0f} s")
    more = (resident() - before) / 2**20
    print(
        f"  {more:.0f} MiB of memory more than the {before / 2**20:.0f} MiB before; network: {asked or 'no'}"
    )
    print("\n".join(f"  {count:6} {outcome}" for outcome, count in sorted(outcomes.items())))
    print("\n".join(f"         {count:6} {said!r}" for said, count in messages.most_common(12)))
    assert not [outcome for outcome in outcomes if "BAD" in outcome]
    assert not asked and more < 2**10


def result_of(left) -> dict | None:
    """The document on stdout, without what differs from one time to the next, and the size of the header."""
    if left.code:
        return None
    tree = json.loads(left.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    for key in ("file", "images_per_second", "ratio", "smaller_than", "over_bound"):
        tree.pop(key, None)
    for key in ("total", "metadata"):
        tree.get("bytes", {}).pop(key, None)
    return tree


def judged(left, expected: dict | None, sealed: bool) -> str:
    if "Traceback" in left.err or "Downloading" in left.out + left.err:
        return "BAD traceback"
    if left.code == 2:
        one = left.err.count("error: ") == 1 and left.out == "" and left.err.rstrip().count("\n") <= 2
        return "refused" if one else "BAD message"
    if left.code != 0:
        return f"BAD exit code {left.code}"
    if result_of(left) == expected:
        return "the same result"
    return "BAD silent difference" if sealed else "another file, valid"


def test_the_checksum_is_what_the_fuzz_reseals(tmp_path):
    old = read(GOLDEN / "format1-digits_resnet-bw.safetensors")
    write(tmp_path / "m", old.document, old.tensors)
    parts = parts_of(tmp_path / "m")
    text = json.dumps(parts.document | {"sha256": ZEROS})
    assert checksum(text, parts.tensors) != checksum(text + " ", parts.tensors)
    assert read(parts.saved(tmp_path / "again")).document.model == old.document.model
