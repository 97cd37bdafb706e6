"""The report of a run: a card that the hub can read, and curves."""

import json
import re

import yaml

from gpt2_hf.report import draw_curves, model_card

from .conftest import read_json


def test_card_has_metadata_results_and_a_sample(finished_run):
    """YAML header, the measured numbers, and how to load the model."""
    card = (finished_run / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "transformers" and header["pipeline_tag"] == "text-generation"
    results = read_json(finished_run / "all_results.json")
    assert f"| validation loss | {results['eval_loss']:.4f} |" in card
    assert f"| test perplexity | {results['test_perplexity']:.2f} |" in card
    assert "## A sample\n\n> " in card and "from_pretrained" in card


def test_card_records_settings_and_circumstances(finished_run):
    """The options and versions are in the card as JSON."""
    card = (finished_run / "README.md").read_text(encoding="utf-8")
    settings, provenance = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", card, flags=re.DOTALL))
    assert settings["d_model"] == 32
    assert {"torch", "transformers", "data", "date", "command"} <= provenance.keys()


def test_curves_are_a_picture(finished_run):
    """curves.png is a PNG of some size."""
    content = (finished_run / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5_000


def test_a_run_without_evaluation_still_has_a_report(tmp_path):
    """No validation entries: the picture and the card leave them out."""
    history = [{"step": step, "loss": 3.0, "perplexity": 20.0, "learning_rate": 1e-3} for step in (1, 2)]
    draw_curves(history, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    assert "validation" not in model_card({"dataset_name": "a/b"}, {"train_loss": 3.0}, None)


def test_card_names_a_hub_data_set(tmp_path):
    """A data set of the hub is linked in the metadata, a local folder is not."""
    assert "datasets:\n- a/b" in model_card({"dataset_name": "a/b"}, {}, None)
    assert "datasets:" not in model_card({"dataset_name": "../a/b"}, {}, None)
