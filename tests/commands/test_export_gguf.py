"""A GGUF file holds the model, and the programs that read it compute what the model computes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from gpt2_hf import GPT2HFForCausalLM, export_to_gpt2, load_tokenizer, train_tokenizer
from gpt2_hf.__main__ import main

from ..tiny_models import make_model

gguf = pytest.importorskip("gguf", reason="the GGUF export needs the package gguf")

from gpt2_hf.commands import export_gguf  # noqa: E402
from gpt2_hf.commands.export_gguf import export_to_gguf  # noqa: E402


def make_spoken(tokenizer, **overrides):
    """A tiny model with a vocabulary of that tokenizer."""
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return make_model(**{"vocab_size": len(tokenizer), "n_layer": 2, **special, **overrides})


def contents(path):
    """The metadata of a file."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def token_ids(length, vocab_size=384):
    return torch.randint(1, vocab_size, (1, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("tied", [True, False, "by its config alone"])
@torch.no_grad()
def test_transformers_reads_the_same_model(tmp_path, tiny_tokenizer, tied):
    """A reader that shares nothing with the writer, transformers' own, gives the model's logits and token ids."""
    # the reader takes neither the number of positions nor the width of the MLP from the file
    model = make_spoken(tiny_tokenizer, tie_word_embeddings=tied is True, n_positions=1024)
    model.config.tie_word_embeddings = bool(tied)
    path, difference = export_to_gguf(model, tmp_path / "exported", tiny_tokenizer, "f32")
    assert difference <= 1e-5
    tensors = {tensor.name for tensor in gguf.GGUFReader(path).tensors}
    assert ("output.weight" in tensors) is (tied is not True)
    back = GPT2LMHeadModel.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ids = token_ids(20)
    assert (back(ids).logits - model(ids).logits).abs().max() <= 1e-5
    text = "The assert statement isn't  a naïve test."
    assert AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)(text) == tiny_tokenizer(text)


def test_the_metadata_is_that_of_llama_cpps_converter(tmp_path, tiny_tokenizer):
    """Sizes, number format and tokenizer stand under the keys that llama.cpp reads."""
    model = make_spoken(tiny_tokenizer, n_inner=64)
    path, _ = export_to_gguf(model, tmp_path / "exported", tiny_tokenizer, "f16", name="tiny")
    found = contents(path)
    expected = {
        "general.architecture": "gpt2",
        "general.type": "model",
        "general.name": "tiny",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_F16),
        "gpt2.block_count": 2,
        "gpt2.context_length": 32,
        "gpt2.embedding_length": 32,
        "gpt2.feed_forward_length": 64,
        "gpt2.attention.head_count": 2,
        "gpt2.attention.layer_norm_epsilon": pytest.approx(1e-5),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["tokenizer.ggml.tokens"][0] == "<|endoftext|>"
    assert found["tokenizer.ggml.token_type"][0] == gguf.TokenType.CONTROL
    assert len(found["tokenizer.ggml.tokens"]) == len(found["tokenizer.ggml.token_type"]) == 384
    assert found["tokenizer.ggml.merges"][0].count(" ") == 1


@pytest.mark.parametrize(("outtype", "matrices", "bound"), [("f16", "F16", 5e-3), ("q8_0", "Q8_0", 0.3)])
def test_smaller_number_formats(tmp_path, tiny_tokenizer, outtype, matrices, bound):
    """Matrices take the number format, vectors and positions stay fp32, and the logits stay near."""
    path, difference = export_to_gguf(make_spoken(tiny_tokenizer), tmp_path / "exported", tiny_tokenizer, outtype)
    formats = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert formats["token_embd.weight"] == formats["blk.1.attn_qkv.weight"] == matrices
    assert {formats[name] for name in formats if name.endswith((".bias", "norm.weight", "position_embd.weight"))} == {
        "F32"
    }
    assert 0 < difference <= bound


def test_rows_without_a_token_have_a_name(tmp_path, tiny_tokenizer):
    """The padding of the vocabulary is left out; ids that the tokenizer lacks are marked as unused."""
    model = make_spoken(tiny_tokenizer, vocab_size=390)
    model.resize_token_embeddings(pad_to_multiple_of=64)
    path, _ = export_to_gguf(model, tmp_path / "exported", tiny_tokenizer, "f32")
    found = contents(path)
    assert len(found["tokenizer.ggml.tokens"]) == 390 and found["tokenizer.ggml.tokens"][-1] == "[PAD389]"
    assert found["tokenizer.ggml.token_type"][384:] == [gguf.TokenType.UNUSED] * 6


def test_a_chat_template_travels_along(tmp_path, tokenizer_folder):
    """Added tokens have their type, and the template of a chat model is in the file."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.add_tokens(["plain"])
    tokenizer.chat_template = "{{ messages[0].content }}"
    path, _ = export_to_gguf(make_spoken(tokenizer), tmp_path / "exported", tokenizer, "f16")
    found = contents(path)
    assert found["tokenizer.chat_template"] == tokenizer.chat_template
    types = [gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED]
    assert found["tokenizer.ggml.token_type"][384:] == types


def test_the_command(tmp_path, tiny_tokenizer, capsys):
    """`export --format gguf` writes one file, says how far its logits are away, and refuses what has no effect."""
    make_spoken(tiny_tokenizer).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    command = ["export", "--model_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "exported")]
    assert main([*command, "--outtype", "f16"]) == 2
    assert "--outtype has no effect with --format hf" in capsys.readouterr().err
    assert main([*command, "--format", "gguf", "--outtype", "q8_0"]) == 0
    assert "model-q8_0.gguf" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["model-q8_0.gguf"]
    assert main([*command, "--format", "gguf"]) == 2
    assert "--output_dir" in capsys.readouterr().err


def test_a_model_with_the_exact_gelu_is_measured_with_llama_cpps(tmp_path, tiny_tokenizer, capsys):
    """llama.cpp has the tanh approximation alone: the difference is measured and said."""
    make_spoken(tiny_tokenizer, activation_function="gelu").save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    command = ["export", "--format", "gguf", "--outtype", "f32", "--model_path", str(tmp_path / "model")]
    assert main([*command, "--output_dir", str(tmp_path / "exported")]) == 0
    printed = capsys.readouterr().out
    assert "llama.cpp computes gelu_new in place of this model's gelu" in printed
    assert 1e-5 < float(printed.split("differ by ")[1].split()[0]) < 1e-1


@pytest.mark.parametrize(
    ("overrides", "outtype", "message"),
    [
        ({"activation_function": "relu"}, "f16", "no activation relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "f16", "knows no scale_attn_by_inverse_layer_idx=True"),
        ({"scale_attn_weights": False}, "f16", "knows no scale_attn_weights=False"),
        ({"n_inner": 40}, "q8_0", "use --outtype f16"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(tmp_path, tiny_tokenizer, overrides, outtype, message):
    """Rather than another model in silence: one line, and nothing written."""
    with pytest.raises(ValueError, match=message):
        export_to_gguf(make_spoken(tiny_tokenizer, **overrides), tmp_path / "exported", tiny_tokenizer, outtype)
    assert not list(tmp_path.iterdir())


def spoil(tokenizer_folder, change):
    """The tiny tokenizer, changed in its file."""
    parts = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(parts)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)))


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts["pre_tokenizer"].update(add_prefix_space=True),
        lambda parts: parts["pre_tokenizer"].update(use_regex=False),
        lambda parts: parts.update(pre_tokenizer={"type": "Whitespace"}),
        lambda parts: parts.update(normalizer={"type": "Lowercase"}),
        lambda parts: parts["model"].update(ignore_merges=True),
        lambda parts: parts["model"].update(byte_fallback=True),
    ],
)
def test_another_tokenizer_is_refused(tmp_path, tiny_tokenizer, tokenizer_folder, change):
    """What splits a text in another way than GPT-2's would get other ids in llama.cpp."""
    with pytest.raises(ValueError, match="no byte-level BPE like GPT-2's"):
        export_to_gguf(make_spoken(tiny_tokenizer), tmp_path / "exported", spoil(tokenizer_folder, change))
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="its model is WordLevel"):
        export_to_gguf(
            make_spoken(tiny_tokenizer), tmp_path / "exported", PreTrainedTokenizerFast(tokenizer_object=words)
        )
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_without_an_end_or_without_merges_is_refused(tmp_path, tokenizer_folder):
    """llama.cpp would end texts at an ordinary token, and does not load a file without merges."""
    for tokenizer, message in (
        (spoil(tokenizer_folder, lambda parts: None), "would end texts at token 11; set eos_token"),
        (train_tokenizer(iter([["The statement"]]), vocab_size=257), "it has no merges"),
    ):
        with pytest.raises(ValueError, match=message):
            export_to_gguf(make_spoken(tokenizer), tmp_path / "exported", tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_token_before_each_text_is_exported_and_one_after_it_refused(tmp_path, tokenizer_folder):
    """llama.cpp is told of the first one; GPT-2's token is both beginning and end."""
    end, backend = "<|endoftext|>", Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single=f"{end} $A", special_tokens=[(end, 0)])
    before = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end)
    path, _ = export_to_gguf(make_spoken(before), tmp_path / "exported", before)
    assert contents(path)["tokenizer.ggml.add_bos_token"] is True
    backend.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 0)])
    after = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end)
    with pytest.raises(ValueError, match="it adds to every text: the ids of 'a' become"):
        export_to_gguf(make_spoken(after), tmp_path / "refused", after)
    assert [each.name for each in tmp_path.iterdir()] == ["exported"]


@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0"])
def test_a_wrong_file_leaves_nothing_behind(tmp_path, tiny_tokenizer, monkeypatch, outtype):
    """If a weight of the file is not the model's, the export fails."""

    def quantize(data, number_format):
        return gguf.quants.quantize(data + np.float32(0.01), number_format)

    monkeypatch.setattr(export_gguf.gguf, "quantize", quantize)
    with pytest.raises(RuntimeError, match="nothing was exported"):
        export_to_gguf(make_spoken(tiny_tokenizer), tmp_path / "exported", tiny_tokenizer, outtype)
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_command_says_so(tmp_path, monkeypatch, capsys):
    """One line that names the package, before a model is looked for."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "gpt2_hf.commands.export_gguf")
    assert main(["export", "--format", "gguf", "--output_dir", str(tmp_path / "exported")]) == 2
    assert "pip install gguf" in capsys.readouterr().err


_LLAMA = """
import json, sys
import llama_cpp
import numpy as np

path, prompt, num_new = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
llama = llama_cpp.Llama(path, n_ctx=128, n_threads=1, logits_all=True, verbose=False, seed=0)
ids = llama.tokenize(prompt.encode(), add_bos=False)
llama.eval(ids)
logits = llama.scores[: len(ids)].tolist()
llama.reset()
text = llama.create_completion(prompt, max_tokens=num_new, temperature=0)["choices"][0]["text"]
print(json.dumps({"ids": ids, "logits": logits, "text": text}))
"""


@pytest.fixture(scope="module")
def run_llama(tmp_path_factory):
    """Run llama.cpp on a file, in the Python that GPT2_HF_LLAMA_PYTHON names, or in this one."""
    python = os.environ.get("GPT2_HF_LLAMA_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, timeout=120).returncode:
        pytest.skip("needs llama-cpp-python, here or in the Python that GPT2_HF_LLAMA_PYTHON names")
    script = tmp_path_factory.mktemp("llama") / "run.py"
    script.write_text(_LLAMA)

    def run(path, prompt, num_new):
        command = [python, str(script), str(path), json.dumps(prompt), str(num_new)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("outtype", "bound"), [("f32", 2e-2), ("f16", 3e-2), ("q8_0", 0.5)])
@torch.no_grad()
def test_llama_cpp_computes_the_same(tmp_path, run_llama, outtype, bound):
    """With GPT-2's tokenizer: the same token ids, logits within the format's rounding, 50 greedy tokens the same."""
    tokenizer = load_tokenizer()
    model = make_spoken(tokenizer, n_positions=128, n_embd=64, n_head=4)
    path, _ = export_to_gguf(model, tmp_path / "exported", tokenizer, outtype)
    prompt = "The assert statement isn't  a naïve 日本 test, it's 3.14!\n\nAnd"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    found = run_llama(path, prompt, 50)
    assert found["ids"] == ids[0].tolist()
    assert (torch.tensor(found["logits"]) - model(ids).logits[0]).abs().max() <= bound
    if outtype == "f32":
        generated = GPT2HFForCausalLM.generate(model, ids, max_new_tokens=50, do_sample=False, eos_token_id=None)
        assert found["text"] == tokenizer.decode(generated[0, ids.shape[1] :])


@pytest.mark.slow
@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0"])
def test_llama_cpps_converter_writes_the_same_file(tmp_path, outtype):
    """convert_hf_to_gguf.py reads the exported folder, and its tensors and metadata are those of the direct way."""
    source = os.environ.get("GPT2_HF_LLAMA_CPP")
    if not source:
        pytest.skip("needs GPT2_HF_LLAMA_CPP: the source folder of llama.cpp, with convert_hf_to_gguf.py")
    tokenizer = load_tokenizer()
    model = make_spoken(tokenizer, n_embd=64)
    model.resize_token_embeddings(pad_to_multiple_of=64)
    path, _ = export_to_gguf(model, tmp_path / "direct", tokenizer, outtype)
    export_to_gpt2(model, tmp_path / "exported", tokenizer)
    converter, converted = os.path.join(source, "convert_hf_to_gguf.py"), tmp_path / "converted.gguf"
    command = [sys.executable, converter, str(tmp_path / "exported"), "--outtype", outtype, "--outfile", converted]
    environment = {**os.environ, "PYTHONPATH": os.path.join(source, "gguf-py")}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(converted).tensors}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].tensor_type == tensor.tensor_type and np.array_equal(ours[name].data, tensor.data)
    expected = {name: value for name, value in contents(converted).items() if not name.startswith("GGUF.")}
    del expected["general.name"]
    found = contents(path)
    assert {name: found[name] for name in expected} == expected
