"""A trained model as one GGUF file, for llama.cpp, ollama and the programs built on them.

In: a model path. Out: a folder with `model-<outtype>.gguf`: weights, sizes and tokenizer, checked by reading the file
back and comparing weights and logits.

Names, sizes and dtypes are those that llama.cpp's `convert_hf_to_gguf.py` gives a `GPT2LMHeadModel`; the
`gguf` package of the same project writes and reads them.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..checkpoints.new_folder import staged_folder
from ..errors import UserError
from ..model.configuration_gpt2_hf import GPT2HFConfig
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import ExportArguments
from .model_loading import load_trained
from .same_model import is_tied, probe_ids, reference_logits, require_same_logits, with_weights
from .stock_gpt2 import stock_weights

try:
    import gguf
except ImportError as error:
    raise UserError("--format gguf needs the package gguf: pip install gguf") from error

# llama.cpp computes the tanh approximation, which has several names, whatever the file says.
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # [in, out] here, [out, in] there
_Q8_BLOCK = 32  # weights of a row that share a scale
# Of a block's largest weight: half a step, and the rounding of the scale to 16 bits.
_Q8_ROUNDING = 0.501 / 127 + 2.0**-11


def run_gguf_export(args: ExportArguments, target: Path) -> int:
    """The command `export --format gguf`."""
    model, tokenizer, source = load_trained(args.model_path)
    path, difference = export_to_gguf(model, target, tokenizer, args.outtype, name=Path(source).name)
    size = path.stat().st_size / 1e6
    print(f"{source} is exported to {path} ({size:,.1f} MB); read back, its logits differ by {difference:.1e}")
    if model.config.activation_function not in _TANH_GELU:
        print(
            f"llama.cpp computes {_TANH_GELU[0]} in place of this model's {model.config.activation_function}; "
            "that is in the difference"
        )
    return 0


def export_to_gguf(
    model: GPT2HFForCausalLM,
    output_dir: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    outtype: str = "f16",
    name: str = "gpt2_hf",
) -> tuple[Path, float]:
    """Write a model and its tokenizer as a GGUF file, complete or not at all.

    Args:
        model: any `GPT2HFForCausalLM` that llama.cpp can compute.
        output_dir: a new folder.
        tokenizer: a byte-level BPE like GPT-2's.
        outtype: `"f32"`, `"f16"` or `"q8_0"`; biases, norms and positions stay in fp32.
        name: what programs show as the model's name.

    Returns:
        `(the file, the largest difference between the logits of the model and of the file)`.

    Raises:
        UserError: if llama.cpp has no such model or tokenizer.
        RuntimeError: if the file does not hold the model.
    """
    _check_model(model.config, outtype)
    vocabulary = _vocabulary(tokenizer, model.config.num_tokens)
    target = Path(output_dir)
    file_name = f"model-{outtype}.gguf"
    with staged_folder(target) as staging:
        _write(staging / file_name, model, tokenizer, vocabulary, outtype, name)
        difference = _check(staging / file_name, model, vocabulary, outtype)
    return target / file_name, difference


def _check_model(config: GPT2HFConfig, outtype: str) -> None:
    """Refuse what llama.cpp would compute otherwise, in silence."""
    if config.activation_function not in (*_TANH_GELU, "gelu"):
        raise UserError(f"--format gguf: llama.cpp's GPT-2 has no activation {config.activation_function}")
    for field, only in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if getattr(config, field) is not only:
            raise UserError(f"--format gguf: llama.cpp's GPT-2 knows no {field}={not only}")
    if outtype == "q8_0" and (config.n_embd % _Q8_BLOCK or config.inner_size % _Q8_BLOCK):
        raise UserError(
            f"--outtype q8_0 needs widths that are multiples of {_Q8_BLOCK}, this model has {config.n_embd} and "
            f"{config.inner_size}; use --outtype f16"
        )


# ---- tokenizer ----


def _vocabulary(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> dict[str, Any]:
    """The tokenizer's entries of the file.

    Raises:
        UserError: if llama.cpp would split or end a text in another way than this tokenizer.
    """
    merges = _byte_level_merges(tokenizer)
    if tokenizer.eos_token_id is None:  # for which llama.cpp has a default
        raise UserError(
            "--format gguf: the tokenizer has no end token, and llama.cpp would end texts at token 11; set eos_token "
            "in its tokenizer_config.json"
        )
    texts = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    tokens = [texts.get(token_id, f"[PAD{token_id}]") for token_id in range(num_tokens)]
    types = [_token_type(tokenizer, token_id, texts.get(token_id)) for token_id in range(num_tokens)]
    return {"tokens": tokens, "types": types, "merges": merges, "adds_bos": _adds_bos(tokenizer)}


def _byte_level_merges(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if not tokenizer.is_fast:
        raise _tokenizer_error("it has no tokenizer.json")
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe, splitter = parts["model"], parts["pre_tokenizer"] or {}
    if splitter.get("type") == "Sequence" and len(splitter["pretokenizers"]) == 1:
        splitter = splitter["pretokenizers"][0]
    like_gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if bpe["type"] != "BPE":
        raise _tokenizer_error(f"its model is {bpe['type']}")
    if any(splitter.get(key) != value for key, value in like_gpt2.items()) or parts["normalizer"] is not None:
        raise _tokenizer_error("it normalises or splits a text in another way")
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges", "dropout"):
        if bpe.get(option):
            raise _tokenizer_error(f"its BPE has {option}")
    merges: list[Any] = bpe["merges"]
    if not merges:
        raise _tokenizer_error("it has no merges")
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]


def _tokenizer_error(reason: str) -> UserError:
    return UserError(f"--format gguf: the tokenizer is no byte-level BPE like GPT-2's ({reason}); llama.cpp lacks it")


def _token_type(tokenizer: PreTrainedTokenizerBase, token_id: int, text: str | None) -> int:
    if text is None:
        return int(gguf.TokenType.UNUSED)
    added = tokenizer.added_tokens_decoder.get(token_id)
    if added is None:
        return int(gguf.TokenType.NORMAL)
    # llama.cpp's converter also takes what looks like <|this|> as special
    is_special = added.special or (text.startswith("<|") and text.endswith("|>"))
    return int(gguf.TokenType.CONTROL if is_special else gguf.TokenType.USER_DEFINED)


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its first token before a text."""
    bare, ids = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    if ids not in (bare, [tokenizer.bos_token_id, *bare]):
        raise _tokenizer_error(f"it adds to every text: the ids of 'a' become {ids}")
    return ids != bare


# ---- writing ----


def _write(
    path: Path,
    model: GPT2HFForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: dict[str, Any],
    outtype: str,
    name: str,
) -> None:
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT2])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    _add_sizes(writer, model.config)
    file_types = gguf.LlamaFileType
    writer.add_file_type(
        {"f32": file_types.ALL_F32, "f16": file_types.MOSTLY_F16}.get(outtype, file_types.MOSTLY_Q8_0)
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, tokenizer, vocabulary)
    for tensor_name, weight in _tensors(model):
        number_format = _number_format(tensor_name, weight, outtype)
        writer.add_tensor(tensor_name, gguf.quantize(weight, number_format), raw_dtype=number_format)
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, config: GPT2HFConfig) -> None:
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.inner_size)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_vocab_size(config.num_tokens)


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, Any]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    for kind in ("bos", "eos", "unk", "pad"):
        token_id = getattr(tokenizer, f"{kind}_token_id")
        if token_id is not None:
            getattr(writer, f"add_{kind}_token_id")(token_id)
    writer.add_add_bos_token(vocabulary["adds_bos"])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(model: GPT2HFForCausalLM) -> Iterator[tuple[str, np.ndarray]]:
    """The weights under llama.cpp's names, fp32, linear weights `[out, in]`; a tied head is left out."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    weights = stock_weights(model)
    without_head = model.config.tie_word_embeddings and is_tied(weights)
    for name, weight in weights.items():
        if name == "lm_head.weight" and without_head:
            continue
        tensor_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert tensor_name is not None, name
        weight = weight.detach().to("cpu", torch.float32)
        yield tensor_name, (weight.t() if name.endswith(_TRANSPOSED) else weight).contiguous().numpy()


def _number_format(tensor_name: str, weight: np.ndarray, outtype: str) -> Any:
    formats = gguf.GGMLQuantizationType
    if weight.ndim == 1 or tensor_name == "position_embd.weight":
        return formats.F32  # as llama.cpp needs them
    return {"f32": formats.F32, "f16": formats.F16, "q8_0": formats.Q8_0}[outtype]


# ---- reading back ----


def _check(path: Path, model: GPT2HFForCausalLM, vocabulary: dict[str, Any], outtype: str) -> float:
    """Read the file, compare its weights and tokens, and return the largest difference of the logits.

    Raises:
        RuntimeError: if a weight differs by more than the rounding of its dtype, or anything else differs.
    """
    reader = gguf.GGUFReader(path)
    for key, expected in (("tokens", "tokens"), ("token_type", "types"), ("merges", "merges")):
        if reader.fields[f"tokenizer.ggml.{key}"].contents() != vocabulary[expected]:
            raise RuntimeError(f"the GGUF file holds other {expected} than the tokenizer; nothing was exported")
    read = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    written = dict(_tensors(model))
    if read.keys() != written.keys():
        raise RuntimeError("the GGUF file holds other tensors than the model; nothing was exported")
    for name, weight in written.items():
        if read[name].shape != weight.shape or not np.all(
            np.abs(read[name] - weight) <= _bound(name, weight, outtype)
        ):
            raise RuntimeError(f"the GGUF file's {name} is not the model's; nothing was exported")
    return _logit_difference(model, read, outtype)


def _bound(name: str, weight: np.ndarray, outtype: str) -> np.ndarray:
    """How far a weight may be from what it was: half a step of its dtype, element by element."""
    formats = gguf.GGMLQuantizationType
    number_format = _number_format(name, weight, outtype)
    if number_format == formats.F32:
        return np.zeros_like(weight)
    if number_format == formats.F16:
        return np.maximum(np.abs(weight) * 2.0**-11, 2.0**-25)
    blocks = np.abs(weight).reshape(*weight.shape[:-1], -1, _Q8_BLOCK)
    return np.repeat(blocks.max(axis=-1) * _Q8_ROUNDING + 127 * 2.0**-25, _Q8_BLOCK, axis=-1)


@torch.no_grad()
def _logit_difference(model: GPT2HFForCausalLM, read: dict[str, np.ndarray], outtype: str) -> float:
    """The logits of the file's weights, under llama.cpp's activation, against the model's."""
    config = copy.deepcopy(model.config)
    config.vocab_size, config.n_vocab_padding = config.num_tokens, 0
    config.activation_function = _TANH_GELU[0]
    from_file = with_weights(GPT2HFForCausalLM, config, _weights_of(read, model))
    ids = probe_ids(config)
    expected, logits = reference_logits(model, ids), from_file(ids).logits
    if outtype == "f32" and model.config.activation_function in _TANH_GELU:
        return require_same_logits(expected, logits)
    return float((expected - logits).abs().max())


def _weights_of(read: dict[str, np.ndarray], model: GPT2HFForCausalLM) -> dict[str, torch.Tensor]:
    """The tensors of the file under GPT-2's names and in its layout."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    weights = {}
    for name in stock_weights(model):
        tensor_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if tensor_name not in read:
            tensor_name = "token_embd.weight"  # the tied head
        weight = torch.from_numpy(np.array(read[tensor_name]))
        weights[name] = weight.t().contiguous() if name.endswith(_TRANSPOSED) else weight
    return weights
