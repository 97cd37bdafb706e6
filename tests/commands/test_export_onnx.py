"""The ONNX file computes what the model computes, for every batch and length, with and without its cache."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from gpt2_hf import GPT2HFForCausalLM
from gpt2_hf.__main__ import main

from ..tiny_models import make_model

onnxruntime = pytest.importorskip("onnxruntime", reason="the ONNX export needs the packages onnx and onnxruntime")
pytest.importorskip("onnxscript", reason="the ONNX export needs the package onnxscript")

from gpt2_hf.commands import export_onnx  # noqa: E402
from gpt2_hf.commands.export_onnx import export_to_onnx  # noqa: E402

NUM_LAYERS, NUM_HEADS, HEAD_SIZE = 2, 2, 16


def random_ids(*shape):
    return torch.randint(1, 384, shape, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model():
    """A model whose vocabulary is padded."""
    model = make_model(vocab_size=384, n_layer=NUM_LAYERS, bos_token_id=0, eos_token_id=0)
    model.resize_token_embeddings(pad_to_multiple_of=100)
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model, tiny_tokenizer):
    """The folder that the command writes."""
    folder = tmp_path_factory.mktemp("onnx")
    model.save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    command = ["export", "--format", "onnx", "--model_path", str(folder / "model")]
    assert main([*command, "--output_dir", str(folder / "exported")]) == 0
    return folder / "exported"


@pytest.fixture(scope="module")
def session(exported):
    return onnxruntime.InferenceSession(str(exported / "onnx" / "model.onnx"))


def run(session, ids, mask, positions, cache=None):
    """Logits and the new cache."""
    names = [i.name for i in session.get_inputs()]
    empty = torch.zeros(len(ids), NUM_HEADS, 0, HEAD_SIZE).numpy()
    cache = cache or [empty] * (2 * NUM_LAYERS)
    values = [ids.numpy(), mask.numpy(), positions.numpy(), *cache]
    logits, *cache = session.run(None, dict(zip(names, values, strict=True)))
    return torch.from_numpy(logits), cache


def test_the_folder_is_laid_out_for_transformers_js(exported, tiny_tokenizer):
    """onnx/model.onnx, config and tokenizer, all of stock GPT-2, without the padding of the vocabulary."""
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert {"onnx/model.onnx", "config.json", "generation_config.json", "tokenizer.json"} <= names
    assert not any(name.endswith((".safetensors", ".py")) for name in names)
    config = AutoConfig.from_pretrained(exported)
    assert (config.model_type, config.vocab_size, config.n_head) == ("gpt2", 384, NUM_HEADS)
    assert AutoTokenizer.from_pretrained(exported)("A list") == tiny_tokenizer("A list")


def test_the_folder_names_none_of_this_machines_files(exported):
    """The exporter notes for each node which line of which file made it; a published model shows no user's folders."""
    for path in exported.rglob("*.*"):
        assert not re.search(rb'\.py", line|site-packages', path.read_bytes()), path


def test_inputs_and_outputs_have_the_usual_names(session):
    """Those of optimum, which transformers.js looks for; batch, length and cache are of any size."""
    inputs = {i.name: i.shape for i in session.get_inputs()}
    assert list(inputs)[:4] == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key"]
    assert inputs["past_key_values.1.value"] == ["batch_size", NUM_HEADS, "past_sequence_length", HEAD_SIZE]
    outputs = {o.name: o.shape for o in session.get_outputs()}
    assert list(outputs) == [
        "logits",
        *(f"present.{i}.{kind}" for i in range(NUM_LAYERS) for kind in ("key", "value")),
    ]
    assert outputs["logits"] == ["batch_size", "sequence_length", 384]


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 32), (2, 2), (3, 17)])
@torch.no_grad()
def test_every_batch_and_length_gives_the_models_logits(session, model, rows, length):
    """One token and all positions, one row and several, padding on the left too."""
    ids = random_ids(rows, length)
    mask = torch.ones_like(ids)
    mask[1:, : length // 3] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits, _ = run(session, ids, mask, positions)
    expected = model(ids, attention_mask=mask, position_ids=positions).logits[..., :384]
    assert (logits - expected)[mask.bool()].abs().max() <= 1e-5


@torch.no_grad()
def test_generating_with_the_cache_gives_the_models_text(session, model):
    """Token by token through the cache: the greedy text of `generate`."""
    ids = random_ids(2, 5)
    text, inputs, cache = ids, ids, None
    for _ in range(20):
        positions = torch.arange(text.shape[1] - inputs.shape[1], text.shape[1]).expand(2, -1)
        logits, cache = run(session, inputs, torch.ones_like(text), positions, cache)
        inputs = logits[:, -1:].argmax(dim=-1)
        text = torch.cat([text, inputs], dim=1)
    generated = GPT2HFForCausalLM.generate(model, ids, max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert torch.equal(text, generated)


@torch.no_grad()
def test_a_head_of_its_own_is_exported_whatever_the_config_says(tmp_path):
    """File and config hold a head that was set by hand."""
    model = make_model(vocab_size=384, n_layer=1, tie_word_embeddings=False)
    model.config.tie_word_embeddings = True
    path, _ = export_to_onnx(model, tmp_path / "exported")
    assert AutoConfig.from_pretrained(tmp_path / "exported").tie_word_embeddings is False
    ids = random_ids(1, 5)
    empty = torch.zeros(1, NUM_HEADS, 0, HEAD_SIZE).numpy()
    session = onnxruntime.InferenceSession(str(path))
    logits, _ = run(session, ids, torch.ones_like(ids), torch.arange(5)[None], [empty] * 2)
    assert (logits - model(ids).logits).abs().max() <= 1e-5


def test_the_command_refuses_what_has_no_effect(tmp_path, capsys):
    """A number format is for gguf alone; a folder in use is left alone."""
    command = ["export", "--format", "onnx", "--output_dir", str(tmp_path / "exported")]
    assert main([*command, "--outtype", "f16"]) == 2
    assert "--outtype has no effect with --format onnx" in capsys.readouterr().err
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "mine").write_text("")
    assert main(command) == 2
    assert "--output_dir" in capsys.readouterr().err


def test_a_wrong_file_leaves_nothing_behind(tmp_path, monkeypatch, exported):
    """If onnxruntime computes something else, here another model's file, the export fails."""
    monkeypatch.setattr(export_onnx, "_export", lambda stock, path: shutil.copy(exported / "onnx/model.onnx", path))
    other = make_model(vocab_size=384, n_layer=NUM_LAYERS)
    with torch.no_grad():
        other.transformer.ln_f.bias.add_(0.1)
    with pytest.raises(RuntimeError, match="nothing was exported"):
        export_to_onnx(other, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_without_the_packages_the_command_says_so(tmp_path, monkeypatch, capsys, package):
    """One line that names them, before a model is looked for."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "gpt2_hf.commands.export_onnx")
    assert main(["export", "--format", "onnx", "--output_dir", str(tmp_path / "exported")]) == 2
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


_TRANSFORMERS_JS = """
import { env, pipeline } from '@huggingface/transformers';
env.allowRemoteModels = false;
env.localModelPath = process.argv[2];
const generate = await pipeline('text-generation', 'exported', { dtype: 'fp32', device: 'cpu' });
console.log(JSON.stringify(await generate('A list is', { max_new_tokens: 12, do_sample: false })));
"""


@pytest.mark.slow
def test_transformers_js_writes_the_models_text(tmp_path, exported, model, tiny_tokenizer):
    """GPT2_HF_NODE names a folder where `npm install @huggingface/transformers` was run: the text is the model's."""
    node_folder = os.environ.get("GPT2_HF_NODE")
    if not node_folder or not shutil.which("node"):
        pytest.skip("needs node, and GPT2_HF_NODE: a folder with @huggingface/transformers in its node_modules")
    (tmp_path / "node_modules").symlink_to(os.path.join(node_folder, "node_modules"))
    (tmp_path / "run.mjs").write_text(_TRANSFORMERS_JS)
    command = ["node", str(tmp_path / "run.mjs"), f"{exported.parent}/"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ids = tiny_tokenizer("A list is", return_tensors="pt").input_ids
    generated = GPT2HFForCausalLM.generate(model, ids, max_new_tokens=12, do_sample=False)
    expected = tiny_tokenizer.decode(generated[0], skip_special_tokens=True)
    assert json.loads(result.stdout)[0]["generated_text"] == expected
