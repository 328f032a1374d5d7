"""Results: what is kept of a report, and what a comparison reads again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_report import a_document

from binarize_cli.errors import InputError
from binarize_cli.report import origin
from binarize_cli.report.results import SCHEMA, as_json, read_results, trim


def test_a_result_is_small_and_holds_what_a_comparison_needs():
    document = a_document([f"class {i}" for i in range(1000)])
    result = trim(document)
    assert len(as_json(result)) < 10_000
    assert result["schema"] == SCHEMA
    assert result["epochs"] == 31 and len(result["curve"]["hard"]) == 31
    assert result["accuracy"]["packed"]["top1"] == document["accuracy"]["packed"]["top1"]
    assert result["data"]["classes"] == 1000 and result["model"] == "timm/deit_tiny_patch16_224"
    assert trim(result) == result


def test_a_folder_of_a_dataset_is_named_without_its_place():
    document = a_document(["a", "b", "c"])
    document["data"]["name"] = "/home/somebody/imagenette"
    assert trim(document)["data"]["name"] == "imagenette"


def test_the_text_of_a_report_has_a_line_a_layer_and_reads_back():
    document = a_document(["a", "b", "c"])
    text = as_json(document)
    assert json.loads(text) == document
    assert len(text.splitlines()) < 150
    with pytest.raises(ValueError):
        as_json({"accuracy": float("nan")})


def test_results_are_read_from_run_folders_reports_and_kept_results(tmp_path):
    run, kept = tmp_path / "runs" / "one", tmp_path / "kept"
    run.mkdir(parents=True)
    kept.mkdir()
    document = a_document(["a", "b", "c"])
    (run / "report.json").write_text(as_json(document))
    (run / "other.json").write_text("{}")
    (kept / "vit.json").write_text(as_json(trim(document)))
    (kept / "compare.json").write_text('{"rows": []}')
    for place in (run, run / "report.json", tmp_path / "runs", kept, kept / "vit.json"):
        assert [result for _, result in read_results([place])] == [trim(document)], place
    assert len(read_results([tmp_path])) == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"accuracy": 1}', "[" * 100_000, '{"schema": "bnnpp result 1"}']
)
def test_what_is_no_report_is_refused_by_name(tmp_path, text):
    file = tmp_path / "report.json"
    file.write_text(text)
    with pytest.raises(InputError, match="is no report of a run") as refused:
        read_results([file])
    assert str(file) in str(refused.value)
    (tmp_path / "empty").mkdir()
    for place, what in (("empty", "holds no finished run"), ("nowhere", "there is no such")):
        with pytest.raises(InputError, match=what):
            read_results([tmp_path / place])


def _git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


def test_the_commit_of_a_checkout_and_whether_files_differ(tmp_path):
    assert origin.commit(tmp_path) is None
    _git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "one")
    head = origin.commit(tmp_path)
    assert head is not None and re.fullmatch("[0-9a-f]{12}", head)
    (tmp_path / "code.py").write_text("2")
    assert origin.commit(tmp_path) == f"{head}-changed"


def test_the_machine_says_its_threads():
    threads = torch.get_num_threads()
    assert origin.machine("cpu").endswith(f", {threads} thread{'s' if threads > 1 else ''}")
    assert origin.machine("NVIDIA H100") == "NVIDIA H100"


@pytest.mark.slow
def test_the_script_of_the_gpu_tables_keeps_finished_rows_and_names_failed_ones(tmp_path):
    (tmp_path / "rows").write_text("good digits_vit --methods bc --epochs 1\nbad digits_vit --methods bcc\n")
    script = Path(__file__).parent / "gpu" / "evidence.sh"
    environment = {"PYTHON": sys.executable, "DEVICE": "cpu", "ROWS": str(tmp_path / "rows"), "JOBS": "1"}
    reports = []
    for _ in range(2):
        done = subprocess.run(
            ["bash", script, tmp_path / "out", "4"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        lines = done.stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["done", "FAILED"], done.stdout + done.stderr
        assert "Did you mean 'bc'?" in lines[1]
        ((path, result),) = read_results([tmp_path / "out"])
        reports.append((path.stat().st_mtime_ns, result["method"]))
    assert reports[0] == reports[1] and reports[0][1] == "bc"  # the second call repeats nothing
