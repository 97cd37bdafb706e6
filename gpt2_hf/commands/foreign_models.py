"""GPT-2 models that other programs have trained: nanoGPT's `ckpt.pt` and llm.c's `.bin`.

In: a file. Out: a `ForeignModel`, its weights under nanoGPT's names and in its layout, and what it computes.
Next stage: `import_model`.

The layout of both is that of `torch.nn.Linear`, weights `[out, in]`; GPT-2's own is `[in, out]`. The reading runs no
code of the file: a checkpoint is unpickled with `weights_only=True`, an llm.c file is numbers only.

Sources: `train.py` and `model.py` of github.com/karpathy/nanoGPT; `write_model` and `write_tensors` in `train_gpt2.py`
of github.com/karpathy/llm.c.

Legend: B batch, T time, C channels, H heads, D head size, L layers, V vocabulary with its padding.
"""

import math
import os
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError, first_line

LLM_C_MAGIC = 20240326
_LLM_C_HEADER = 256  # int32 numbers
_LLM_C_SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "padded_vocab_size")
_LLM_C_NUMBERS = {3: "float32", 5: "bfloat16"}  # by version
_ZIP_MAGIC = b"PK\x03\x04"  # what torch.save writes since torch 1.6
_COMPILED_PREFIX = "_orig_mod."  # torch.compile's
_MASK_BUFFERS = (".attn.bias", ".attn.masked_bias")  # of nanoGPT on a torch without flash attention
_EPSILON = 1e-5  # of every LayerNorm, in both programs

_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


@dataclass(frozen=True)
class ForeignModel:
    """A model as its program wrote it.

    Attributes:
        program: `"nanoGPT"` or `"llm.c"`.
        block_size: positions.
        vocab_size: V, rows of the embedding.
        num_tokens: rows that stand for a token, where the file says so.
        dropout: rate of the training, 0 where the file does not say it.
        activation: `"gelu"` or `"gelu_new"`, the tanh approximation.
        weights: fp32, linear weights `[out, in]`; the biases may be absent.
    """

    program: Literal["nanoGPT", "llm.c"]
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    num_tokens: int | None
    dropout: float
    activation: str
    weights: dict[str, Tensor]

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """What the model computes for token ids `[B, T]`: logits `[B, T, V]`, by plain torch in the file's layout."""
        w = self.weights
        positions = torch.arange(ids.shape[1])
        x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][positions]  # [B, T, C]
        for layer in range(self.n_layer):
            block = f"transformer.h.{layer}"
            x = x + self._attention(f"{block}.attn", self._layer_norm(f"{block}.ln_1", x))
            inner = self._linear(f"{block}.mlp.c_fc", self._layer_norm(f"{block}.ln_2", x))
            inner = F.gelu(inner, approximate="tanh" if self.activation == "gelu_new" else "none")
            x = x + self._linear(f"{block}.mlp.c_proj", inner)
        head = w.get("lm_head.weight", w["transformer.wte.weight"])
        return F.linear(self._layer_norm("transformer.ln_f", x), head)

    def _attention(self, name: str, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self._linear(f"{name}.c_attn", x).view(batch, length, 3, self.n_head, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, T, D]
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.n_embd // self.n_head)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v  # [B, H, T, D]
        return self._linear(f"{name}.c_proj", mixed.transpose(1, 2).reshape(batch, length, -1))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.weights.get(f"{name}.bias"), _EPSILON)


def read_foreign_model(path: str | Path, activation: str | None = None) -> ForeignModel:
    """Read a nanoGPT checkpoint or an llm.c model; which of them it is, its first bytes say.

    Args:
        path: `ckpt.pt`, or `gpt2_124M.bin`.
        activation: that of a nanoGPT model: `"gelu"` (what it computes since June 2023) when left out, or
            `"gelu_new"`.

    Raises:
        UserError: if the file is none of them, is damaged, or lacks something.
    """
    path = Path(os.path.expanduser(path))
    try:
        with path.open("rb") as file:
            beginning = file.read(4)
        if beginning == _ZIP_MAGIC:
            return _read_nanogpt(path, activation or "gelu")
        if len(beginning) == 4 and int.from_bytes(beginning, "little") == LLM_C_MAGIC:
            if activation is not None:
                raise UserError(
                    "--activation_function has no effect on an llm.c model, which has gelu_new; leave it out"
                )
            return _read_llm_c(path)
    except IsADirectoryError as error:
        raise UserError(
            f"--model_path: {path} is a folder; give the file in it, such as {path / 'ckpt.pt'} "
            "(a folder in Hugging Face's layout needs no import)"
        ) from error
    except OSError as error:
        raise UserError(f"--model_path: {path} cannot be read ({error.strerror or error})") from error
    raise UserError(
        f"--model_path: {path} is neither a nanoGPT checkpoint (written by torch.save) nor an llm.c model "
        f"(whose first number is {LLM_C_MAGIC})"
    )


def linear_shapes(n_layer: int, n_embd: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes `[out, in]` of the linear layers, in the order of the forward pass."""
    for layer in range(n_layer):
        block = f"transformer.h.{layer}"
        yield f"{block}.attn.c_attn", (3 * n_embd, n_embd)
        yield f"{block}.attn.c_proj", (n_embd, n_embd)
        yield f"{block}.mlp.c_fc", (4 * n_embd, n_embd)
        yield f"{block}.mlp.c_proj", (n_embd, 4 * n_embd)


def norm_names(n_layer: int) -> list[str]:
    """Names of the LayerNorms."""
    of_blocks = [f"transformer.h.{layer}.{norm}" for layer in range(n_layer) for norm in ("ln_1", "ln_2")]
    return [*of_blocks, "transformer.ln_f"]


# ---- nanoGPT ----


def _read_nanogpt(path: Path, activation: str) -> ForeignModel:
    checkpoint = _load_without_code(path)
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= checkpoint.keys():
        raise UserError(
            f"--model_path: {path} is no nanoGPT checkpoint: it lacks model and model_args, which its train.py writes"
        )
    sizes = _nanogpt_sizes(path, checkpoint["model_args"])
    weights = _nanogpt_weights(path, checkpoint["model"])
    _check_weights(path, weights, sizes)
    dropout = checkpoint["model_args"].get("dropout", 0.0)
    return ForeignModel("nanoGPT", **sizes, num_tokens=None, dropout=dropout, activation=activation, weights=weights)


def _load_without_code(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise UserError(f"--model_path: {path} is cut short or damaged; copy it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"--model_path: {path} holds more than tensors and plain values, and reading that may run code of the "
            "file; it is not read. Save it again with model and model_args alone"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        reason = first_line(error)[:120]
        raise UserError(
            f"--model_path: {path} is no checkpoint of torch.save, or damaged ({reason}); copy it again"
        ) from error


def _nanogpt_sizes(path: Path, model_args: Any) -> dict[str, int]:
    if not isinstance(model_args, dict):
        raise UserError(f"--model_path: {path}: model_args is no dictionary, so this is no nanoGPT checkpoint")
    missing = [name for name in _SIZES if name not in model_args]
    if missing:
        raise UserError(f"--model_path: {path}: its model_args lack {', '.join(missing)}; add them and save it again")
    for name in _SIZES:
        value = model_args[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(
                f"--model_path: {path}: {name} in its model_args must be a positive integer, got {value!r}"
            )
    return {name: model_args[name] for name in _SIZES}


def _nanogpt_weights(path: Path, state_dict: Any) -> dict[str, Tensor]:
    if not isinstance(state_dict, dict) or not all(isinstance(weight, Tensor) for weight in state_dict.values()):
        raise UserError(f"--model_path: {path}: model is no state_dict, so this is no nanoGPT checkpoint")
    weights = {name.removeprefix(_COMPILED_PREFIX): weight.float() for name, weight in state_dict.items()}
    return {name: weight for name, weight in weights.items() if not name.endswith(_MASK_BUFFERS)}


def _check_weights(path: Path, weights: dict[str, Tensor], sizes: dict[str, int]) -> None:
    """Raise a `UserError` unless there are exactly the weights of a GPT-2 of these sizes, with or without biases."""
    width = sizes["n_embd"]
    table = (sizes["vocab_size"], width)
    required: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": table,
        "transformer.wpe.weight": (sizes["block_size"], width),
    }
    optional: dict[str, tuple[int, ...]] = {"lm_head.weight": table}
    for name, shape in linear_shapes(sizes["n_layer"], width):
        required[f"{name}.weight"] = shape
        optional[f"{name}.bias"] = shape[:1]
    for name in norm_names(sizes["n_layer"]):
        required[f"{name}.weight"] = optional[f"{name}.bias"] = (width,)
    expected = {**required, **optional}
    for problem, names in (
        ("lacks", required.keys() - weights.keys()),
        ("has, beyond those of GPT-2,", weights.keys() - expected.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} others" if len(names) > 1 else ""
            raise UserError(f"--model_path: {path} {problem} the weight {min(names)}{more}; gpt2_hf takes GPT-2 only")
    for name, weight in weights.items():
        if tuple(weight.shape) != expected[name]:
            raise UserError(
                f"--model_path: {path}: {name} has the shape {list(weight.shape)}, "
                f"its model_args ask for {list(expected[name])}"
            )


# ---- llm.c ----


def _read_llm_c(path: Path) -> ForeignModel:
    header = np.fromfile(path, dtype="<i4", count=_LLM_C_HEADER)
    if len(header) < _LLM_C_HEADER:
        raise UserError(f"--model_path: {path} is cut short: not even its header is complete; copy it again")
    version = int(header[1])
    if version not in _LLM_C_NUMBERS:
        raise UserError(
            f"--model_path: {path} is an llm.c model of version {version}; gpt2_hf reads 3 (fp32) and 5 (bf16), "
            "which llm.c writes since May 2024"
        )
    sizes = dict(zip(_LLM_C_SIZES, map(int, header[2 : 2 + len(_LLM_C_SIZES)]), strict=True))
    num_rows, num_tokens = sizes.pop("padded_vocab_size"), sizes["vocab_size"]
    if min(sizes.values()) < 1 or num_rows < num_tokens:
        raise UserError(f"--model_path: {path}: the sizes in its header are impossible ({sizes}); copy it again")
    sizes["vocab_size"] = num_rows
    weights = _llm_c_weights(path, sizes, version)
    return ForeignModel("llm.c", **sizes, num_tokens=num_tokens, dropout=0.0, activation="gelu_new", weights=weights)


def _llm_c_weights(path: Path, sizes: dict[str, int], version: int) -> dict[str, Tensor]:
    shapes = _llm_c_shapes(sizes)
    numbers = sum(math.prod(shape) for _, shape in shapes)
    num_bytes, expected = path.stat().st_size, 4 * _LLM_C_HEADER + numbers * (4 if version == 3 else 2)
    if num_bytes != expected:
        raise UserError(
            f"--model_path: {path} has {num_bytes:,} bytes, its header asks for {expected:,}: "
            "it is cut short or damaged; copy it again"
        )
    # numpy has no bfloat16; its 16 bits pass through as integers
    raw = np.fromfile(path, dtype="<f4" if version == 3 else "<i2", offset=4 * _LLM_C_HEADER)
    flat = torch.from_numpy(raw)
    if version == 5:
        flat = flat.view(torch.bfloat16).float()
    parts = flat.split([math.prod(shape) for _, shape in shapes])
    return {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}


def _llm_c_shapes(sizes: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights in the order of the file: each kind for all layers, then the next kind."""
    width, num_layers = sizes["n_embd"], sizes["n_layer"]
    linear = {name.removeprefix("transformer.h.0."): shape for name, shape in linear_shapes(1, width)}
    kinds: list[tuple[str, tuple[int, ...]]] = []
    for norm, layers in (("ln_1", ("attn.c_attn", "attn.c_proj")), ("ln_2", ("mlp.c_fc", "mlp.c_proj"))):
        kinds += [(f"{norm}.weight", (width,)), (f"{norm}.bias", (width,))]
        for name in layers:
            kinds += [(f"{name}.weight", linear[name]), (f"{name}.bias", linear[name][:1])]
    return [
        ("transformer.wte.weight", (sizes["vocab_size"], width)),
        ("transformer.wpe.weight", (sizes["block_size"], width)),
        *((f"transformer.h.{layer}.{kind}", shape) for kind, shape in kinds for layer in range(num_layers)),
        ("transformer.ln_f.weight", (width,)),
        ("transformer.ln_f.bias", (width,)),
    ]
