"""A trained model as transformers' own `GPT2LMHeadModel`, for every tool that reads GPT-2.

In: a model path. Out: a folder with config, safetensors, generation config and tokenizer, checked by loading
it again and comparing logits.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from ..checkpoints.new_folder import require_new_folder, staged_folder
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import ExportArguments
from .model_loading import load_trained
from .same_model import probe_ids, reference_logits, require_same_logits, save_tokenizer
from .stock_gpt2 import stock_model


def run_export(args: ExportArguments) -> int:
    """The command `export`."""
    transformers_logging.disable_progress_bar()
    target = require_new_folder(args.output_dir)
    if args.format == "gguf":
        from .export_gguf import run_gguf_export

        return run_gguf_export(args, target)
    if args.format == "onnx":
        from .export_onnx import run_onnx_export

        return run_onnx_export(args, target)
    model, tokenizer, source = load_trained(args.model_path)
    difference = export_to_gpt2(model, target, tokenizer)
    print(f"{source} is exported to {target} as GPT2LMHeadModel; loaded back, its logits differ by {difference:.1e}")
    return 0


def export_to_gpt2(
    model: GPT2HFForCausalLM, output_dir: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> float:
    """Write a model as stock GPT-2, complete or not at all.

    Args:
        model: the model, on any device.
        output_dir: a new or an empty folder; it is there once all is written and checked.
        tokenizer: saved beside the model, with the model's number of positions as its longest text; left out when
            `None`.

    Returns:
        The largest difference between the logits of the model and of the folder loaded back.

    Raises:
        UserError: if `output_dir` is not empty or cannot be written, or if somebody else's folder has the name under
            which it is filled.
        RuntimeError: if the folder does not compute what the model computes.
    """
    with staged_folder(Path(output_dir)) as staging:
        stock = stock_model(model)
        stock.save_pretrained(staging)
        if tokenizer is not None:
            save_tokenizer(tokenizer, staging, model.config.n_positions)
        return _largest_logit_difference(model, staging)


def to_linear_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Exchange each `Conv1D` of a GPT-2 for an `nn.Linear` that computes the same, in place, for quantisation.

    GPT-2 keeps its weights as `[in, out]` in a layer of transformers' own, which torchao and torch's quantisation pass
    over: they look for `nn.Linear`. After this call they find every layer. The logits stay the same to rounding.

    The names stay and the weights are transposed, so a folder saved from it does not load as a GPT-2: load, convert,
    then quantise.

    Args:
        model: ours or stock GPT-2, with or without its head.

    Returns:
        The same model.

    Raises:
        ValueError: if there is no such layer, for instance because they are exchanged already.
    """
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Conv1D)]
    if not layers:
        raise ValueError("the model has no Conv1D layer to exchange: is it a GPT-2, and is this the first call?")
    for name, layer in layers:
        linear = nn.Linear(*layer.weight.shape, device="meta")
        linear.weight = nn.Parameter(layer.weight.detach().t().contiguous(), layer.weight.requires_grad)
        linear.bias = layer.bias
        model.set_submodule(name, linear.train(layer.training))
    return model


@torch.no_grad()
def _largest_logit_difference(model: GPT2HFForCausalLM, folder: Path) -> float:
    stock = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = probe_ids(model.config)
    return require_same_logits(reference_logits(model, ids), stock(ids).logits)
