"""A trained model as transformers' own `GPT2LMHeadModel`, for every tool that reads GPT-2.

In: a model path. Out: a folder with config, safetensors, generation config and tokenizer, checked by loading
it again and comparing logits.
"""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from ..checkpoints import folders
from ..errors import UserError
from ..model.configuration_gpt2_hf import GPT2HFConfig
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import ExportArguments
from .model_loading import load_trained

# Of the largest logit. Both compute the same function in fp32, but with another GELU kernel.
_TOLERANCE = 1e-5
_NOT_STOCK_FIELDS = (
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "_name_or_path",
    "n_vocab_padding",
)
_VOCABULARY_WEIGHTS = ("transformer.wte.weight", "lm_head.weight")


def run_export(args: ExportArguments) -> int:
    """The command `export`."""
    transformers_logging.disable_progress_bar()
    target = Path(args.output_dir).expanduser()
    if target.is_file() or (target.exists() and any(target.iterdir())):
        raise UserError(f"--output_dir: {target} exists and is not empty; give a new folder")
    model, tokenizer, source = load_trained(args.model_path)
    difference = export_to_gpt2(model, target, tokenizer)
    print(f"{source} is exported to {target} as GPT2LMHeadModel; loaded back, its logits differ by {difference:.1e}")
    return 0


def export_to_gpt2(
    model: GPT2HFForCausalLM, output_dir: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> float:
    """Write a model as stock GPT-2, complete or not at all.

    Returns:
        The largest difference between the logits of the model and of the folder loaded back.

    Raises:
        RuntimeError: if the folder does not compute what the model computes.
    """
    target = Path(output_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = folders.open_staging(target.parent, target.name)
    try:
        stock = _with_weights(GPT2LMHeadModel, stock_config(model.config), stock_weights(model))
        stock.generation_config = model.generation_config
        stock.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.model_max_length = model.config.n_positions
            tokenizer.save_pretrained(staging)
        folders.follow_umask(staging)
        difference = _largest_logit_difference(model, staging)
        if target.exists():
            target.rmdir()  # empty, or this fails
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return difference


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


def stock_config(config: GPT2HFConfig) -> GPT2Config:
    """The same model described as transformers' GPT-2, without the padding of the vocabulary."""
    fields = {name: value for name, value in config.to_dict().items() if name not in _NOT_STOCK_FIELDS}
    return GPT2Config(**{**fields, "vocab_size": config.num_tokens})


def stock_weights(model: GPT2HFForCausalLM) -> dict[str, torch.Tensor]:
    """The model's weights, without the rows that pad the vocabulary. No copies."""
    weights = model.state_dict()
    return {name: w[: model.config.num_tokens] if name in _VOCABULARY_WEIGHTS else w for name, w in weights.items()}


def _with_weights(model_class: type, config: GPT2Config | GPT2HFConfig, weights: dict[str, torch.Tensor]) -> Any:
    """A model that holds these very tensors."""
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def _largest_logit_difference(model: GPT2HFForCausalLM, folder: Path) -> float:
    """Compare in fp32 on the CPU, and leave the model where and as it is.

    Raises:
        RuntimeError: if the difference is more than rounding.
    """
    weights = {name: weight.to("cpu", torch.float32) for name, weight in model.state_dict().items()}
    ours = _with_weights(GPT2HFForCausalLM, copy.deepcopy(model.config), weights)
    ours.set_attn_implementation("eager")
    stock = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(min(64, model.config.n_positions)).remainder(model.config.num_tokens).unsqueeze(0)
    expected = ours(ids).logits[..., : model.config.num_tokens]
    difference = float((expected - stock(ids).logits).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise RuntimeError(f"the exported model's logits differ by {difference:.1e}; nothing was exported")
    return difference
