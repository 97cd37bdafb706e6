"""The config accepts what GPT-2 can be, reads stock configs, and refuses the rest by name."""

import json
import math

import pytest
from transformers import AutoConfig, GPT2Config

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM, GPT2HFModel

# openai-community/gpt2/config.json, word for word.
OPENAI_CONFIG = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}


def test_defaults_are_those_of_gpt2():
    """Every field that both configs know has the same default."""
    ours, stock = GPT2HFConfig().to_dict(), GPT2Config().to_dict()
    shared = ours.keys() & stock.keys() - {"model_type"}
    assert {name: ours[name] for name in shared} == {name: stock[name] for name in shared}
    assert {"n_embd", "n_layer", "activation_function", "reorder_and_upcast_attn", "tie_word_embeddings"} <= shared


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_embd": 0}, "n_embd"),
        ({"n_layer": -1}, "n_layer"),
        ({"n_head": 2.5}, "n_head"),
        ({"n_positions": True}, "n_positions"),
        ({"vocab_size": "50257"}, "vocab_size"),
        ({"n_inner": 0}, "n_inner"),
        ({"resid_pdrop": 1.0}, "resid_pdrop"),
        ({"attn_pdrop": -0.1}, "attn_pdrop"),
        ({"embd_pdrop": math.nan}, "embd_pdrop"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon"),
        ({"initializer_range": -0.02}, "initializer_range"),
        ({"initializer_range": math.nan}, "initializer_range"),
        ({"n_vocab_padding": -1}, "n_vocab_padding"),
        ({"vocab_size": 10, "n_vocab_padding": 10}, "n_vocab_padding"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"activation_function": "gelu_newer"}, "gelu_newer"),
        ({"num_attention_heads": 0}, "n_head"),
    ],
)
def test_impossible_values_are_refused_by_name(changes, named):
    """A value that no GPT-2 can have raises a ValueError that names the field or the remedy."""
    with pytest.raises(ValueError, match=named):
        GPT2HFConfig(**changes)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"n_embd": 768, "n_head": 7}, "6 or 8"),
        ({"n_embd": 8, "n_head": 16}, "n_head"),
        ({"hidden_size": 100}, "n_embd"),
        ({"n_embd": 37, "n_head": 12}, "1 or 37"),
    ],
)
def test_heads_that_do_not_divide_the_width_are_refused_by_the_model(sizes, named):
    """The config may hold them, as stock's may; no model can be built from it."""
    assert GPT2Config(**sizes).n_embd == GPT2HFConfig(**sizes).n_embd
    for model_class in (GPT2HFModel, GPT2HFForCausalLM):
        with pytest.raises(ValueError, match=named):
            model_class(GPT2HFConfig(**sizes))


def test_reads_the_config_of_openais_weights(tmp_path):
    """A stock config.json becomes ours: same sizes, our model type, nothing of the double-heads model."""
    (tmp_path / "config.json").write_text(json.dumps(OPENAI_CONFIG))
    config = GPT2HFConfig.from_pretrained(tmp_path)
    assert config.model_type == "gpt2_hf"
    assert (config.n_embd, config.n_layer, config.n_head, config.n_positions) == (768, 12, 12, 1024)
    assert not hasattr(config, "summary_type")
    assert config.architectures is None


def test_a_stock_decoder_with_cross_attention_is_refused(tmp_path):
    """A config variant that we do not have is refused by name, not ignored."""
    (tmp_path / "config.json").write_text(json.dumps({**OPENAI_CONFIG, "add_cross_attention": True}))
    with pytest.raises(ValueError, match="add_cross_attention"):
        GPT2HFConfig.from_pretrained(tmp_path)


def test_saved_and_loaded_is_the_same(tmp_path):
    """save_pretrained and AutoConfig give back every field."""
    config = GPT2HFConfig(n_embd=48, n_head=3, n_inner=100, activation_function="relu", n_vocab_padding=7)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, GPT2HFConfig)
    ours, theirs = config.to_dict(), loaded.to_dict()
    assert {**ours, "_name_or_path": None} == {**theirs, "_name_or_path": None}


def test_sizes_that_follow_from_others():
    """The MLP is four times as wide unless it is told otherwise; the heads share the width."""
    assert GPT2HFConfig(n_embd=96, n_head=3).inner_size == 384 and GPT2HFConfig(n_inner=5).inner_size == 5
    assert GPT2HFConfig(n_embd=96, n_head=3).head_size == 32


def test_answers_to_the_general_names():
    """Tools that know only the general names read and write the right fields."""
    config = GPT2HFConfig(hidden_size=48, num_attention_heads=4, num_hidden_layers=5, max_position_embeddings=77)
    assert (config.n_embd, config.n_head, config.n_layer, config.n_positions) == (48, 4, 5, 77)
    config.num_hidden_layers = 6
    assert config.n_layer == 6
