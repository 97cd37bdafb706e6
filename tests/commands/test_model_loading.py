"""Weights come in from every kind of folder without a changed bit; what cannot be loaded is refused in one line."""

import copy
import json
import os
import re
import shutil
import textwrap
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2DoubleHeadsModel,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    pipeline,
)

from gpt2_hf import GPT2HFForCausalLM, GPT2HFModel, ModelArguments
from gpt2_hf.commands.model_loading import (
    build_model,
    load_model_tokenizer,
    load_trained,
    load_weights,
    read_config,
    resolve_model_path,
)
from gpt2_hf.errors import UserError

from ..conftest import REPOSITORY, python
from ..tiny_models import NO_DROPOUT, SIZES, VOCAB_SIZE, bitwise_equal, make_model, make_stock, random_ids

# distilgpt2's config.json has these on top of GPT-2's fields.
DISTILGPT2_FIELDS = {
    "_num_labels": 1,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "n_ctx": 32,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}


@pytest.fixture
def tokenizer(tokenizer):
    """A copy: `build_model` tells it the model's length."""
    return copy.deepcopy(tokenizer)


def edit_config(folder, **changes):
    """Change fields of a saved config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder):
    """Load as the commands do."""
    return load_weights(str(folder), read_config(str(folder), "--model_path"), None, "--model_path")


@pytest.mark.parametrize(
    "kind", ["lm", "base", "sharded", "untied", "sharded_untied", "bf16", "distilgpt2", "double_heads", "classifier"]
)
@torch.no_grad()
def test_stock_folders_load_bitwise(tmp_path, kind):
    """Base and LM checkpoints, sharded, untied, in bf16, with foreign heads: the same bits and the same logits."""
    stock = make_stock(tie_word_embeddings="untied" not in kind)
    saved = stock
    if kind == "base":
        saved = stock.transformer
    elif kind == "bf16":
        saved = stock.to(torch.bfloat16)
    elif kind in ("double_heads", "classifier"):
        head_class = {"double_heads": GPT2DoubleHeadsModel, "classifier": GPT2ForSequenceClassification}[kind]
        saved = head_class(stock.config)
        saved.transformer.load_state_dict(stock.transformer.state_dict())
    saved.save_pretrained(tmp_path, max_shard_size="20kB" if "sharded" in kind else "50GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == ("sharded" in kind)
    if kind == "distilgpt2":
        edit_config(tmp_path, **DISTILGPT2_FIELDS)
    model = GPT2HFForCausalLM.from_pretrained(tmp_path)
    assert bitwise_equal(model.state_dict(), stock.state_dict())
    assert model.dtype == stock.dtype
    ids = random_ids(2, 9)
    stock, model = stock.float(), load(tmp_path).eval()
    assert model.config.model_type == "gpt2_hf" and model.dtype == torch.float32
    assert (model(ids).logits - stock(ids).logits).abs().max() <= 1e-5


def test_old_checkpoints_with_mask_buffers_load(tmp_path):
    """OpenAI's own file has prefix-less names and causal-mask buffers; both are taken without a warning."""
    from safetensors.torch import load_file, save_file

    stock = make_stock()
    stock.transformer.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for i in range(SIZES["n_layer"]):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, report = GPT2HFForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert bitwise_equal(model.state_dict(), stock.state_dict())


def test_a_stock_model_taken_in_is_saved_as_ours(tmp_path):
    """After loading stock weights, save_pretrained writes a gpt2_hf folder with the same bits."""
    stock = make_stock(tie_word_embeddings=False)
    stock.save_pretrained(tmp_path / "stock")
    GPT2HFForCausalLM.from_pretrained(tmp_path / "stock").save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "gpt2_hf"
    assert bitwise_equal(GPT2HFForCausalLM.from_pretrained(tmp_path / "ours").state_dict(), stock.state_dict())


@torch.no_grad()
def test_a_hub_id_is_read_from_the_cache(tmp_path, monkeypatch, tokenizer):
    """openai-community/gpt2 works as a model path; without a network, from the hub's cache."""
    snapshot = tmp_path / "models--openai-community--gpt2" / "snapshots" / "0123456789abcdef"
    make_stock(vocab_size=len(tokenizer)).transformer.save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    (tmp_path / "models--openai-community--gpt2" / "refs").mkdir()
    (tmp_path / "models--openai-community--gpt2" / "refs" / "main").write_text("0123456789abcdef")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    model, _, source = load_trained("openai-community/gpt2")
    assert source == "openai-community/gpt2"
    assert bitwise_equal(model.state_dict(), make_stock(vocab_size=len(tokenizer)).state_dict())


def test_a_model_of_the_hub_may_have_the_name_of_a_checkpoint(tmp_path, monkeypatch):
    """transformers names a repository after the output folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpt2_hf.commands.model_loading.ensure_hub_or_offline", lambda: True)
    assert resolve_model_path("someone/best_model", "checkpoints", "--model_path") == "someone/best_model"


@pytest.mark.parametrize(
    "name",
    [
        *("latest", "best_model", "checkpoint-10", "checkpoint_epoch_3", "checkpoints/best_model"),
        "checkpoints\\checkpoint_epoch_3",
    ],
)
def test_the_name_of_a_checkpoint_is_no_hub_id(tmp_path, monkeypatch, name):
    """Where the run is missing, that is said, and no network is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "gpt2_hf.commands.model_loading.ensure_hub_or_offline", lambda: pytest.fail("the hub was asked")
    )
    message = rf"--model_path: there is no checkpoint {re.escape(repr(name))}; \w+ holds no checkpoints"
    with pytest.raises(UserError, match=message):
        load_trained(Path(name))


def damage(folder, how):
    """Spoil a saved model in one way."""
    weights = folder / "model.safetensors"
    if how == "no folder":
        shutil.rmtree(folder)
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "broken config":
        (folder / "config.json").write_text("{")
    elif how == "a list as config":
        (folder / "config.json").write_text("[]")
    elif how == "unknown dtype":
        edit_config(folder, dtype="floatx")
    elif how == "dtype of a list":
        edit_config(folder, dtype=[1])
    elif how == "layers of a number":
        edit_config(folder, layer_types=5)
    elif how == "no weights":
        weights.unlink()
    elif how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "missing head":
        edit_config(folder, tie_word_embeddings=False)
    elif how == "other sizes":
        edit_config(folder, n_embd=64)
    elif how == "more layers":
        edit_config(folder, n_layer=5)
    elif how == "heads do not divide":
        edit_config(folder, n_head=5)
    elif how == "other architecture":
        edit_config(folder, model_type="llama")
    elif how == "cross attention":
        edit_config(folder, add_cross_attention=True)
    elif how == "only a pickle":
        weights.unlink()
        torch.save({}, folder / "pytorch_model.bin")
    elif how == "other vocabulary":
        edit_config(folder, vocab_size=50)
    elif how == "other positions":
        edit_config(folder, n_positions=64)
    elif how == "half the weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    else:
        weights.unlink()
        make_stock().save_pretrained(folder, max_shard_size="20kB")
        (shard,) = folder.glob("model-00002-of-*.safetensors")
        if how == "a shard cut":
            shard.write_bytes(shard.read_bytes()[:-100])
        elif how == "a shard missing":
            shard.unlink()
        else:
            (folder / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("no folder", "no checkpoint"),
        ("no config", "config.json"),
        ("broken config", "JSON"),
        ("a list as config", "no model can be loaded from .*; correct its config.json"),
        ("unknown dtype", "floatx.*; correct its config.json"),
        ("dtype of a list", "; correct its config.json"),
        ("layers of a number", "; correct its config.json"),
        ("no weights", "weights"),
        ("truncated weights", "weights"),
        ("missing head", "lacks weights that the model needs: lm_head.weight"),
        ("other sizes", "weights"),
        ("more layers", "h.3.*and 23 others"),
        ("heads do not divide", "n_head"),
        ("other architecture", "'llama' model"),
        ("cross attention", "add_cross_attention"),
        ("only a pickle", "model.safetensors are missing"),
        ("other vocabulary", r"model\.safetensors does not fit .*wte.* \[97, 32\], .* \[50, 32\] \(vocab_size 50\)"),
        ("other positions", r"model\.safetensors does not fit .* \(n_positions 64\)"),
        ("half the weights", r"model\.safetensors are damaged, probably cut short .*; copy the file again"),
        ("a shard cut", r"model-00002-of-000\d\d\.safetensors are damaged"),
        ("a shard missing", r"model-00002-of-000\d\d\.safetensors are missing"),
        ("a broken index", r"model\.safetensors\.index\.json is damaged"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path, how, named, monkeypatch):
    """Each kind of damage is a UserError of one line that names the option and the cause."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "model"
    make_stock().save_pretrained(folder)
    damage(folder, how)
    with pytest.raises(UserError, match=named) as caught:
        load_trained(str(folder))
    assert str(caught.value).startswith("--model_path: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_class", [GPT2HFForCausalLM, GPT2HFModel, AutoModelForCausalLM])
def test_no_pickle_is_read_beside_missing_weights(tmp_path, model_class):
    """Not by from_pretrained either, unless it is asked for; weights of another library can then be taken in."""
    model = make_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for options in ({}, {"use_safetensors": None}):
        with pytest.raises(OSError, match=r"no file named model\.safetensors .* pass use_safetensors=False"):
            model_class.from_pretrained(tmp_path, **options)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        model_class.from_pretrained(tmp_path, use_safetensors=True)
    loaded = model_class.from_pretrained(tmp_path, use_safetensors=False)
    assert torch.equal(loaded.get_input_embeddings().weight, model.lm_head.weight)


def test_a_pickle_on_the_hub_is_refused_with_the_remedy(monkeypatch):
    """transformers advises against an option that the user has not set; here it is what to do."""

    def refuse(*args, **kwargs):
        raise OSError(
            "someone/gpt2 does not appear to have a file named model.safetensors or model.safetensors.index.json and "
            "thus cannot be loaded with `safetensors`. Please do not set `use_safetensors=True`."
        )

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    with pytest.raises(OSError, match=r"with `safetensors`\. gpt2_hf .* pass use_safetensors=False [^`]*$"):
        GPT2HFForCausalLM.from_pretrained("someone/gpt2")
    with pytest.raises(UserError, match=r"`safetensors`\. If .* GPT2LMHeadModel\.from_pretrained.*save_pretrained"):
        load_weights("someone/gpt2", make_model().config, None, "--model_path")


def test_training_can_start_from_stock_weights(tmp_path, tokenizer):
    """--model_name_or_path takes a stock folder, with this run's dropout; too long a --max_length is refused."""
    stock = make_stock(vocab_size=len(tokenizer), bos_token_id=50256, eos_token_id=50256)
    stock.save_pretrained(tmp_path)
    model = build_model(ModelArguments(model_name_or_path=str(tmp_path), max_length=32, dropout=0.3), tokenizer)
    assert bitwise_equal(model.state_dict(), stock.state_dict())
    assert model.transformer.drop.p == model.transformer.h[0].mlp.dropout.p == 0.3
    with pytest.raises(UserError, match="--max_length 33 exceeds the 32 positions"):
        build_model(ModelArguments(model_name_or_path=str(tmp_path), max_length=33), tokenizer)


def test_a_new_model_has_the_tokenizers_vocabulary(tokenizer):
    """From scratch, sizes come from the arguments and ids from the tokenizer."""
    model = build_model(ModelArguments(d_model=32, num_layers=1, num_heads=2, max_length=16, d_ff=48), tokenizer)
    config = model.config
    assert (config.vocab_size, config.n_positions, config.n_inner) == (50257, 16, 48)
    assert config.bos_token_id == config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("sizes", [{"d_model": 100_000_000}, {"num_layers": 10**9}, {"d_ff": 10**12}])
def test_a_model_larger_than_the_machine_is_refused(tokenizer, sizes):
    """Before anything is allocated, with the sizes that make it so large."""
    (name, size) = next(iter(sizes.items()))
    with pytest.raises(UserError, match=rf"weights, .* GiB free; make it smaller: .*--{name} {size}"):
        build_model(ModelArguments(**sizes), tokenizer)


def test_a_model_of_one_position_is_refused_at_once():
    """It can learn nothing: there is no token before the one that it would predict."""
    with pytest.raises(UserError, match="--max_length must be at least 2, got 1"):
        ModelArguments(max_length=1)


def test_a_model_that_just_fits_is_built(tokenizer, monkeypatch):
    """The weights are counted exactly."""
    args = ModelArguments(d_model=32, num_layers=2, num_heads=2, max_length=16, d_ff=48)
    size = 4 * build_model(args, tokenizer).num_parameters()
    monkeypatch.setattr("psutil.swap_memory", lambda: SimpleNamespace(free=0))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=size))
    build_model(args, tokenizer)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=size - 1))
    with pytest.raises(UserError, match=r"this machine has 0\.0 GiB free"):
        build_model(args, tokenizer)


def test_a_tokenizer_is_saved_with_the_models_length(tmp_path, tokenizer):
    """A new model's, a loaded model's, and that of a folder saved before this was so."""
    tokenizer = copy.deepcopy(tokenizer)
    model = build_model(ModelArguments(d_model=32, num_layers=1, num_heads=2, max_length=16), tokenizer)
    assert tokenizer.model_max_length == 16
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.model_max_length == 16 and saved.pad_token == saved.eos_token
    saved.model_max_length = int(1e30)
    saved.save_pretrained(tmp_path)
    assert load_trained(str(tmp_path))[1].model_max_length == 16
    build_model(ModelArguments(model_name_or_path=str(tmp_path), max_length=8), saved)
    assert saved.model_max_length == 16


def test_a_pipeline_truncates_a_long_prompt(tmp_path, tokenizer):
    """To the model's length, or to what leaves room for the new tokens."""
    tokenizer = copy.deepcopy(tokenizer)
    model = build_model(ModelArguments(d_model=32, num_layers=1, num_heads=2, max_length=16), tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pipe = pipeline("text-generation", str(tmp_path), device="cpu")
    assert len(pipe.preprocess("one two three" * 50, truncation=True)["input_ids"][0]) == 16
    options = {"truncation": True, "max_new_tokens": 4, "do_sample": False}
    (out,) = pipe("one two three" * 50, handle_long_generation="hole", return_full_text=False, **options)
    assert len(tokenizer(out["generated_text"]).input_ids) > 0


def test_an_unknown_attention_backend_is_refused(tmp_path, tokenizer):
    """An attention backend that is not there names its option, for a new model and for a loaded one."""
    with pytest.raises(UserError, match="--attn_implementation nonsense"):
        build_model(ModelArguments(d_model=32, num_layers=1, attn_implementation="nonsense"), tokenizer)
    make_model().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--attn_implementation nonsense"):
        load_trained(str(tmp_path), attn_implementation="nonsense")


def test_a_tokenizer_with_too_many_ids_is_refused(tmp_path, tokenizer):
    """Ids beyond the embedding, or in its padding, are refused; rows beyond the tokenizer are not."""
    model = make_model()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="50,257 ids but the model's vocabulary has only 97"):
        load_trained(str(tmp_path))
    model.resize_token_embeddings(50_000, pad_to_multiple_of=1024)
    assert model.config.vocab_size > len(tokenizer) - 1000
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="only 50,000"):
        load_trained(str(tmp_path))
    model.resize_token_embeddings(50_300)
    model.save_pretrained(tmp_path)
    assert load_trained(str(tmp_path))[0].config.vocab_size == 50_300


def test_a_folder_called_gpt2_has_its_own_tokenizer(tmp_path, monkeypatch, tokenizer_folder):
    """The name of a folder that is there does not stand for GPT-2's tokenizer."""
    monkeypatch.chdir(tmp_path)
    make_stock(vocab_size=384).save_pretrained("gpt2")
    shutil.copytree(tokenizer_folder, "gpt2", dirs_exist_ok=True)
    for name in ("gpt2", "./gpt2"):
        assert len(load_trained(name)[1]) == len(load_model_tokenizer(name)) == 384


def test_the_name_of_a_checkpoint_is_looked_up_in_the_run_that_is_given(tmp_path, tokenizer_folder):
    """From Python, where a run need not be in the default folder."""
    folder = tmp_path / "run" / "best_model"
    make_stock(vocab_size=384).save_pretrained(folder)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    assert load_trained("best_model", str(tmp_path / "run"))[2] == str(folder)


def test_a_folder_without_tokenizer(tmp_path, tokenizer):
    """GPT-2's tokenizer is used if the vocabulary is GPT-2's, padded or not; otherwise the lack is named."""
    model = make_model(vocab_size=len(tokenizer))
    model.resize_token_embeddings(pad_to_multiple_of=64)
    model.save_pretrained(tmp_path)
    assert len(load_trained(str(tmp_path))[1]) == len(tokenizer)
    assert load_model_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()
    make_model().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"--model_path: .* has no tokenizer and its 97 ids"):
        load_trained(str(tmp_path))
    with pytest.raises(UserError, match=r"--model_name_or_path: .* has no tokenizer and its 97 ids"):
        load_model_tokenizer(str(tmp_path))


REMOTE_CODE = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "gpt2_hf":
                raise ImportError("gpt2_hf is not installed here")

    sys.meta_path.insert(0, Blocker())
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline

    folder, again, old = sys.argv[1:]
    ids = torch.arange(9)[None]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    logits = base(ids).last_hidden_state @ model.lm_head.weight.T
    assert torch.allclose(model(ids).logits, logits, atol=1e-5)
    fresh = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True
    )
    model.train()(ids, labels=ids).loss.backward()
    model.eval().save_pretrained(again)
    second = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
    print(second.generate(ids, max_new_tokens=5, do_sample=False)[0].tolist())
    print(second(ids).loss, model.transformer.h[2].mlp.c_proj.weight.sum().item(), fresh.num_parameters())
    print(AutoModelForCausalLM.from_pretrained(old, trust_remote_code=True).num_parameters())
"""


def test_loads_where_the_package_is_not_importable(tmp_path):
    """With trust_remote_code every Auto class loads a saved model in a process that cannot import gpt2_hf.

    So it does a model of an earlier version, with the source that was saved beside it.
    """
    model, name = make_model(), "my módel (2)"
    model.save_pretrained(tmp_path / name)
    zipfile.ZipFile(REPOSITORY / "tests" / "job" / "fixtures" / "run_of_dc2dd75.zip").extractall(tmp_path)
    expected = model.generate(torch.arange(9)[None], max_new_tokens=5, do_sample=False)[0].tolist()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    folders = [str(tmp_path / folder) for folder in (name, "again", "run/best_model")]
    done = python(textwrap.dedent(REMOTE_CODE), *folders, timeout=240, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    weight_sum = model.transformer.h[2].mlp.c_proj.weight.sum().item()
    figures = f"None {weight_sum} {model.num_parameters()}"
    assert done.stdout.splitlines() == [str(expected), figures, "11776"]


@pytest.mark.parametrize("variant", [{"n_inner": 20}, {"scale_attn_by_inverse_layer_idx": True}, {"n_layer": 1}])
@torch.no_grad()
def test_config_variants_come_in_with_their_weights(tmp_path, variant):
    """A stock folder's config variant is read, not only its weights: the logits agree."""
    stock = make_stock(**variant)
    stock.save_pretrained(tmp_path)
    ids = random_ids(1, 9)
    model = load(tmp_path).eval()
    assert all(getattr(model.config, name) == value for name, value in variant.items())
    assert (model(ids).logits - stock(ids).logits).abs().max() <= 1e-5
    assert model.config.vocab_size == VOCAB_SIZE
    assert all(getattr(model.config, name) == rate for name, rate in NO_DROPOUT.items())
    assert isinstance(GPT2LMHeadModel.from_pretrained(tmp_path), GPT2LMHeadModel)
