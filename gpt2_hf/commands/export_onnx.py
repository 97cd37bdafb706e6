"""A trained model as ONNX, for onnxruntime and, through transformers.js, for the browser.

In: a model path. Out: a folder with `onnx/model.onnx`, config and tokenizer, as transformers.js expects it, checked in
onnxruntime against the model's logits.

torch's own exporter is used (`torch.onnx.export(dynamo=True)`, with onnxscript): it traces transformers' GPT-2 with
its key/value cache as it is. optimum-onnx 0.1 does not take transformers 5. Inputs and outputs have optimum's names.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GPT2LMHeadModel, PreTrainedTokenizerBase

from ..checkpoints.new_folder import staged_folder
from ..errors import UserError
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import ExportArguments
from .model_loading import load_trained
from .same_model import reference_logits, require_same_logits, save_tokenizer, with_weights
from .stock_gpt2 import stock_config, stock_weights

try:
    import onnx_ir.passes.common  # comes with onnxscript
    import onnxruntime
    import onnxscript  # noqa: F401  # torch's exporter needs it
except ImportError as error:
    raise UserError(
        "--format onnx needs the packages onnx, onnxscript and onnxruntime: pip install onnx onnxscript onnxruntime"
    ) from error

_FILE = "onnx/model.onnx"
# Rows, tokens of each row, and how many of them come from the cache.
_CHECKED = ((1, 1, 0), (1, 16, 0), (3, 7, 0), (2, 9, 8), (4, 12, 5))


def run_onnx_export(args: ExportArguments, target: Path) -> int:
    """The command `export --format onnx`."""
    model, tokenizer, source = load_trained(args.model_path)
    path, difference = export_to_onnx(model, target, tokenizer)
    size = sum(file.stat().st_size for file in path.parent.iterdir()) / 1e6
    print(f"{source} is exported to {path} ({size:,.1f} MB); in onnxruntime its logits differ by {difference:.1e}")
    return 0


def export_to_onnx(
    model: GPT2HFForCausalLM, output_dir: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[Path, float]:
    """Write a model in fp32 as ONNX with a key/value cache, complete or not at all.

    The inputs are `input_ids` `[B, T]`, `attention_mask` `[B, P + T]`, `position_ids` `[B, T]` and, for each layer,
    `past_key_values.<layer>.key` and `.value` `[B, H, P, D]`, where P may be 0. The outputs are `logits` `[B, T, V]`
    and `present.<layer>.key` and `.value` `[B, H, P + T, D]`.

    Returns:
        `(the file, the largest difference between the logits of the model and of onnxruntime)`.

    Raises:
        RuntimeError: if the file does not compute what the model computes.
    """
    target = Path(output_dir)
    with staged_folder(target) as staging:
        weights = {name: weight.to("cpu", torch.float32) for name, weight in stock_weights(model).items()}
        stock = with_weights(GPT2LMHeadModel, stock_config(model.config), weights)
        stock.set_attn_implementation("eager")
        (staging / _FILE).parent.mkdir()
        _export(stock, staging / _FILE)
        stock.config.architectures, stock.config.dtype = ["GPT2LMHeadModel"], torch.float32
        stock.config.save_pretrained(staging)
        model.generation_config.save_pretrained(staging)
        if tokenizer is not None:
            save_tokenizer(tokenizer, staging, model.config.n_positions)
        difference = _largest_logit_difference(model, staging / _FILE)
    return target / _FILE, difference


class _WithCache(nn.Module):
    """GPT-2 with the cache as plain tensors in and out."""

    def __init__(self, model: GPT2LMHeadModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=DynamicCache(past),
            use_cache=True,
        )
        return outputs.logits, [(layer.keys, layer.values) for layer in outputs.past_key_values.layers]


def _export(stock: GPT2LMHeadModel, path: Path) -> None:
    config = stock.config
    rows, length, num_past = 2, 3, 5  # any numbers but 0 and 1, which the exporter takes as fixed
    cache_shape = (rows, config.n_head, num_past, config.n_embd // config.n_head)
    # a model of fewer positions than this is traced all the same: only the sizes are read
    example = (
        torch.zeros(rows, length, dtype=torch.long),
        torch.ones(rows, num_past + length, dtype=torch.long),
        torch.zeros(rows, length, dtype=torch.long),
        [(torch.zeros(cache_shape), torch.zeros(cache_shape)) for _ in range(config.n_layer)],
    )
    batch_and_length = {0: "batch_size", 1: "sequence_length"}
    cached = {0: "batch_size", 2: "past_sequence_length"}
    dynamic_shapes = (
        batch_and_length,
        {0: "batch_size", 1: "total_sequence_length"},
        batch_and_length,
        [(cached, cached)] * config.n_layer,
    )
    with _quiet():
        program = torch.onnx.export(
            _WithCache(stock).eval(),
            example,
            dynamo=True,
            verbose=False,
            input_names=["input_ids", "attention_mask", "position_ids", *_cache_names("past_key_values", config)],
            output_names=["logits", *_cache_names("present", config)],
            dynamic_shapes=dynamic_shapes,
        )
        assert program is not None
        # the lines of code that made each node, with this user's folders
        onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
        program.save(path)


def _cache_names(prefix: str, config: Any) -> list[str]:
    return [f"{prefix}.{layer}.{kind}" for layer in range(config.n_layer) for kind in ("key", "value")]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about itself from the terminal; its errors are exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@torch.no_grad()
def _largest_logit_difference(model: GPT2HFForCausalLM, path: Path) -> float:
    """Compare in onnxruntime: several lengths and batches, rows padded on the left, with and without a cache."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = []
    for rows, length, num_cached in _CHECKED:
        length = min(length, model.config.n_positions)
        num_cached = min(num_cached, length - 1)
        ids = torch.randint(model.config.num_tokens, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1:, : (length - 1) // 2] = 0  # the first row is whole, the others are padded
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = _run(session, model.config, ids, mask, positions, num_cached)
        expected = reference_logits(model, ids, attention_mask=mask, position_ids=positions)[:, num_cached:]
        real = mask[:, num_cached:].bool()
        differences.append(require_same_logits(expected[real], logits[real]))
    return max(differences)


def _run(session: Any, config: Any, ids: Tensor, mask: Tensor, positions: Tensor, num_cached: int) -> Tensor:
    """Logits of all tokens after the first `num_cached`, which go through the cache."""
    empty = torch.zeros(len(ids), config.n_head, 0, config.n_embd // config.n_head)
    cache = [empty.numpy()] * (2 * config.n_layer)
    parts = [(0, num_cached), (num_cached, ids.shape[1])] if num_cached else [(0, ids.shape[1])]
    for start, end in parts:
        inputs = {
            "input_ids": ids[:, start:end].numpy(),
            "attention_mask": mask[:, :end].numpy(),
            "position_ids": positions[:, start:end].numpy(),
            **dict(zip(_cache_names("past_key_values", config), cache, strict=True)),
        }
        logits, *cache = session.run(None, inputs)
    return torch.from_numpy(logits)
