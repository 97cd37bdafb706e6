"""lm-eval scores a saved model from its folder, on a task of the test's own."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from gpt2_hf import GPT2HFForCausalLM, export_to_gpt2
from gpt2_hf.data.tokenizer import load_tokenizer

from ..tiny_models import make_model

_TASK = """
task: tiny_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""
_TEXTS = ["The assert statement is a list of one.", "A naïve test, or two.", "Lists are written in brackets: [1, 2]."]


@pytest.fixture(scope="module")
def python():
    """The Python that has lm-eval: this one, or the one that GPT2_HF_LM_EVAL_PYTHON names."""
    python = os.environ.get("GPT2_HF_LM_EVAL_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import lm_eval"], capture_output=True, timeout=120).returncode:
        pytest.skip("needs lm-eval, here or in the Python that GPT2_HF_LM_EVAL_PYTHON names")
    return python


@torch.no_grad()
def bits_per_byte(model, tokenizer):
    """What lm-eval measures: each text after one end-of-text token, all of its tokens scored."""
    total = 0.0
    for text in _TEXTS:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text).input_ids]])
        log_probabilities = model(ids).logits.log_softmax(dim=-1)[0, :-1]
        total -= float(log_probabilities.gather(1, ids[0, 1:, None]).sum())
    return total / math.log(2) / sum(len(text.encode()) for text in _TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "exported"])
def test_lm_eval_scores_a_folder(tmp_path, python, kind):
    """The folder of a run with trust_remote_code, the exported one without: the score is the model's."""
    tokenizer = load_tokenizer("gpt2")
    special = {"bos_token_id": 50256, "eos_token_id": 50256}
    model: GPT2HFForCausalLM = make_model(vocab_size=len(tokenizer), n_positions=64, **special)
    if kind == "ours":
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
    else:
        export_to_gpt2(model, tmp_path / "model", tokenizer)
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in _TEXTS))
    (tmp_path / "tasks" / "tiny.yaml").write_text(_TASK.format(path=data))
    trusted = ",trust_remote_code=True" if kind == "ours" else ""
    command = [
        *(python, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--tasks", "tiny_text"),
        *("--model_args", f"pretrained={tmp_path / 'model'},dtype=float32{trusted}"),
        *("--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out"), "--batch_size", "1"),
    ]
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ, **home})
    assert result.returncode == 0, result.stderr
    report = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert report["results"]["tiny_text"]["bits_per_byte,none"] == pytest.approx(
        bits_per_byte(model, tokenizer), abs=1e-4
    )
