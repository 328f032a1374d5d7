"""The model card of a run folder: front matter that the Hub takes, and scores that are the report's."""

from __future__ import annotations

import copy
import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from binarize_cli.report.card import front_matter, render_card, without_places


@pytest.fixture
def report(finished) -> dict:
    return json.loads((finished / "report.json").read_text())


def test_a_finished_run_has_the_card_and_the_hub_s_own_library_reads_it(finished, report):
    text = (finished / "README.md").read_text()
    assert text == render_card(report)
    card = ModelCard(text).data
    assert card.library_name == "bnnpp" and card.pipeline_tag == "image-classification"
    (accuracy, _) = card.eval_results
    assert accuracy.metric_type == "accuracy" and accuracy.dataset_name == "digits"
    assert accuracy.metric_value == pytest.approx(report["accuracy"]["packed"]["top1"] / 100)
    assert card.license == "unknown" and "base_model" not in yaml.safe_load(text.split("---")[1])
    assert f"| packed file | {report['accuracy']['packed']['top1']:.2f} |" in text
    assert 'bnnpp.load("model.safetensors")' in text and f"$ {without_places(report['command'])}" in text
    assert not re.search(r"\{\w+\}", text), "every field is filled in"


def test_weights_of_the_hub_name_their_base_model_and_its_licence(report):
    hub = copy.deepcopy(report)
    hub["model"] |= {"name": "deit_tiny_patch16_224", "source": "timm"}
    hub["provenance"]["weights"] = "Hugging Face timm/deit_tiny_patch16_224.fb_in1k"
    hub["data"]["name"] = "hfds/frgfm/imagenette"
    front = front_matter(hub)
    assert front["base_model"] == "timm/deit_tiny_patch16_224.fb_in1k"
    assert front["license"] == "apache-2.0" and front["datasets"] == ["frgfm/imagenette"]


def test_a_folder_of_images_shows_its_name_and_nothing_of_where_it_lies(report):
    report["data"]["name"] = "/home/me/secret/photos"
    front = front_matter(report)
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "photos" and "datasets" not in front
    assert "of photos (10 classes)" in render_card(report)
