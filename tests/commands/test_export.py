"""What is exported is stock GPT-2 to the bit, complete or not there at all."""

import json

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, GPT2LMHeadModel

from gpt2_hf import GPT2HFForCausalLM, export_to_gpt2, to_linear_layers
from gpt2_hf.__main__ import main
from gpt2_hf.errors import UserError

from ..tiny_models import SIZES, VOCAB_SIZE, bitwise_equal, make_model, make_stock, random_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_bitwise(tmp_path, dtype, tied):
    """Stock to ours to stock: config fields, dtype and every bit of the weights survive."""
    stock = make_stock(tie_word_embeddings=tied, n_inner=20, scale_attn_by_inverse_layer_idx=True).to(dtype)
    stock.save_pretrained(tmp_path / "stock")
    model = GPT2HFForCausalLM.from_pretrained(tmp_path / "stock")
    assert model.dtype == dtype
    difference = export_to_gpt2(model, tmp_path / "exported")
    assert difference <= 1e-5
    back = GPT2LMHeadModel.from_pretrained(tmp_path / "exported")
    assert back.dtype == dtype
    assert bitwise_equal(back.state_dict(), stock.state_dict())
    before, after = stock.config.to_dict(), back.config.to_dict()
    assert after.pop("n_ctx") == SIZES["n_positions"]  # an old name, added for llama.cpp's converter
    assert {**before, "_name_or_path": ""} == {**after, "_name_or_path": ""}
    assert bitwise_equal(GPT2HFForCausalLM.from_pretrained(tmp_path / "exported").state_dict(), model.state_dict())


def test_nothing_but_the_stock_files_is_written(tmp_path, tokenizer):
    """The folder holds config, weights, generation config and tokenizer: no code, no auto_map, no staging left."""
    model = make_model(vocab_size=len(tokenizer), eos_token_id=50256, bos_token_id=50256)
    model.save_pretrained(tmp_path / "ours")  # which puts the auto_map into the config
    model.generation_config = GenerationConfig(do_sample=True, top_k=7, eos_token_id=50256)
    export_to_gpt2(model, tmp_path / "exported", tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "ours"]
    names = {path.name for path in (tmp_path / "exported").iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"} <= names
    assert not any(name.endswith(".py") for name in names)
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["architectures"] == ["GPT2LMHeadModel"]
    assert "auto_map" not in config and "n_vocab_padding" not in config
    stock = GPT2LMHeadModel.from_pretrained(tmp_path / "exported")
    assert stock.generation_config.top_k == 7
    loaded = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert loaded("Hello world").input_ids == tokenizer("Hello world").input_ids
    assert loaded.model_max_length == SIZES["n_positions"]
    assert tokenizer.model_max_length > SIZES["n_positions"]  # the caller's is left alone


@pytest.mark.parametrize("folder", [".", "link"])
def test_a_folder_that_cannot_be_replaced(tmp_path, monkeypatch, folder):
    """The current folder and a link, as to a larger disk, are filled, and are what they were."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty" if folder == "." else tmp_path)
    inode = (tmp_path / "empty").stat().st_ino
    export_to_gpt2(make_model(), folder)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty").stat().st_ino == inode
    names = {path.name for path in (tmp_path / "empty").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    with pytest.raises(UserError, match=r"--output_dir: .* cannot be written \(Directory not empty\)"):
        export_to_gpt2(make_model(), folder)
    assert {path.name for path in (tmp_path / "empty").iterdir()} == names


def test_the_config_holds_what_llama_cpps_converter_reads(tmp_path):
    """`convert_hf_to_gguf.py` looks these up for a GPT2LMHeadModel, and fails where one is missing."""
    model = make_model()
    model.resize_token_embeddings(pad_to_multiple_of=64)
    export_to_gpt2(model, tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    names = ("vocab_size", "n_layer", "n_embd", "n_head")
    assert {name: config[name] for name in names} == {name: SIZES[name] for name in names}
    assert (config["n_ctx"], config["layer_norm_epsilon"]) == (SIZES["n_positions"], 1e-5)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_padding_of_the_vocabulary_is_left_out(tmp_path, tied):
    """Rows that only pad the vocabulary do not reach the file; the logits of the tokens are the same."""
    model = make_model(tie_word_embeddings=tied)
    unpadded = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.resize_token_embeddings(pad_to_multiple_of=64)
    export_to_gpt2(model, tmp_path / "exported")
    stock = GPT2LMHeadModel.from_pretrained(tmp_path / "exported")
    assert stock.config.vocab_size == VOCAB_SIZE
    assert bitwise_equal(stock.state_dict(), unpadded)
    size = sum(path.stat().st_size for path in (tmp_path / "exported").glob("*.safetensors"))
    assert size < 4 * sum(p.numel() for p in stock.parameters()) + 20_000
    ids = random_ids(1, 9)
    assert (stock(ids).logits - model(ids).logits[..., :VOCAB_SIZE]).abs().max() <= 1e-5


@pytest.mark.parametrize("loaded", [False, True])
@torch.no_grad()
def test_a_head_of_its_own_is_exported_whatever_the_config_says(tmp_path, loaded):
    """transformers computes with such a head, set by hand or found in a folder; the exported config says the truth."""
    model = make_model(tie_word_embeddings=False)
    model.config.tie_word_embeddings = True
    if loaded:
        model.save_pretrained(tmp_path / "ours")
        model = GPT2HFForCausalLM.from_pretrained(tmp_path / "ours").eval()
    export_to_gpt2(model, tmp_path / "exported")
    stock = GPT2LMHeadModel.from_pretrained(tmp_path / "exported")
    assert stock.config.tie_word_embeddings is False
    ids = random_ids(1, 9)
    assert (stock(ids).logits - model(ids).logits).abs().max() <= 1e-5
    assert model.config.tie_word_embeddings is True  # the model is left as it was


def test_the_model_is_left_as_it_was(tmp_path):
    """Exporting changes neither mode nor dtype nor weights of the model."""
    model = make_model().to(torch.bfloat16).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    export_to_gpt2(model, tmp_path / "exported")
    assert model.training and model.dtype == torch.bfloat16
    assert bitwise_equal(model.state_dict(), before)
    assert model.config._attn_implementation == "sdpa"


def test_a_wrong_export_leaves_nothing_behind(tmp_path):
    """If the folder does not give the model's logits, here for not-a-number, the export fails and leaves no folder."""
    model = make_model()
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = torch.nan
    with pytest.raises(RuntimeError, match="nothing was exported"):
        export_to_gpt2(model, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, tokenizer, capsys):
    """`export` writes the folder, says how far the logits are apart, and refuses a folder that is in use."""
    model = make_model(vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = ["export", "--model_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "exported")]
    assert main(command) == 0
    assert "as GPT2LMHeadModel; loaded back, its logits differ by" in capsys.readouterr().out
    assert bitwise_equal(GPT2LMHeadModel.from_pretrained(tmp_path / "exported").state_dict(), model.state_dict())
    assert main(command) == 2
    assert "--output_dir" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([*command[:-1], str(tmp_path / "file")]) == 2
    assert main(["export", "--model_path", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "x")]) == 2


@pytest.mark.parametrize("which", ["ours", "stock", "base"])
@torch.no_grad()
def test_linear_layers_compute_the_same(which):
    """Every Conv1D is exchanged, the logits stay to 1e-6 of the largest, and a second call is refused."""
    model = {"ours": make_model, "stock": make_stock, "base": lambda: make_model().transformer}[which]()
    ids = random_ids(2, 12)
    expected = model(ids)[0]
    assert to_linear_layers(model) is model
    num_linear = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert num_linear == 4 * SIZES["n_layer"] + (which != "base")
    difference = (model(ids)[0] - expected).abs().max()
    assert difference <= 1e-6 * expected.abs().max()
    with pytest.raises(ValueError, match="no Conv1D"):
        to_linear_layers(model)


def test_linear_layers_train_to_the_same_gradients():
    """They are ordinary layers: loss and gradients agree, transposed."""
    model, linear = make_model(), to_linear_layers(make_model())
    ids = random_ids(2, 12)
    for one in (model, linear):
        one.train()(ids, labels=ids).loss.backward()
    gradient = model.transformer.h[0].attn.c_attn.weight.grad
    torch.testing.assert_close(linear.transformer.h[0].attn.c_attn.weight.grad.t(), gradient, atol=1e-5, rtol=0)


def relative_error(quantised, exact):
    """Root mean square of the difference, as a share of the exact logits' own."""
    return float((quantised - exact).square().mean().sqrt() / exact.square().mean().sqrt())


@torch.no_grad()
def test_torch_quantises_the_linear_layers():
    """torch's own dynamic int8 finds every layer, where it found none but the head, and errs by little."""
    model, ids = make_model(), random_ids(2, 12)
    exact = model(ids).logits
    to_linear_layers(model)
    if not torch.backends.quantized.supported_engines[1:]:
        pytest.skip("this build of torch has no engine for int8")
    names = {name: torch.ao.quantization.default_dynamic_qconfig for name, _ in model.named_modules() if "c_" in name}
    quantised = torch.ao.quantization.quantize_dynamic(model, names)
    changed = [m for m in quantised.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(changed) == 4 * SIZES["n_layer"]
    assert 0 < relative_error(quantised(ids).logits, exact) < 0.03


@pytest.mark.parametrize("how", ["weight_only", "dynamic"])
@torch.no_grad()
def test_torchao_quantises_the_linear_layers(how):
    """int8 weight-only and dynamic find every layer but the head, which the embedding shares, and err by little."""
    quantization = pytest.importorskip("torchao.quantization")
    config = {
        "weight_only": quantization.Int8WeightOnlyConfig,
        "dynamic": quantization.Int8DynamicActivationInt8WeightConfig,
    }[how]()
    model = make_model()
    ids = random_ids(2, 12)
    exact = model(ids).logits
    quantization.quantize_(to_linear_layers(model), config, filter_fn=is_linear_but_not_head)
    changed = [name for name, weight in model.named_parameters() if type(weight) is not torch.nn.Parameter]
    assert len(changed) == 4 * SIZES["n_layer"]
    assert 0 < relative_error(model(ids).logits, exact) < 0.03
    assert model.generate(ids, max_new_tokens=3, pad_token_id=96).shape == (2, 15)


def is_linear_but_not_head(module, name):
    """torchao's `filter_fn`."""
    return isinstance(module, torch.nn.Linear) and name != "lm_head"
