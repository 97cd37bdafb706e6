"""A trained model as transformers' own `GPT2LMHeadModel`, for every tool that reads GPT-2.

In: a model path. Out: a folder with config, safetensors, generation config and tokenizer, checked by loading
it again and comparing logits.
"""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from . import checkpoints
from .arguments import ExportArguments
from .configuration_gpt2_hf import GPT2HFConfig
from .errors import UserError
from .model_loading import load_trained
from .modeling_gpt2_hf import GPT2HFForCausalLM

# Both compute the same function in fp32, but with another GELU kernel.
_TOLERANCE = 1e-4
_NOT_STOCK_FIELDS = ("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path")


def run_export(args: ExportArguments) -> int:
    """The command `export`."""
    target = Path(args.output_dir).expanduser()
    if target.exists() and any(target.iterdir()):
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
    staging = checkpoints.open_staging(target.parent, target.name)
    stock = GPT2LMHeadModel(stock_config(model.config))
    stock.load_state_dict(model.state_dict())
    stock.generation_config = model.generation_config
    stock.to(model.dtype).save_pretrained(staging)
    if tokenizer is not None:
        tokenizer.save_pretrained(staging)
    difference = _largest_logit_difference(model, GPT2LMHeadModel.from_pretrained(staging))
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"the exported model's logits differ by {difference:.1e}; nothing was exported")
    if target.exists():
        target.rmdir()  # empty, or this fails
    staging.rename(target)
    return difference


def stock_config(config: GPT2HFConfig) -> GPT2Config:
    """The same model described as transformers' GPT-2."""
    fields = {name: value for name, value in config.to_dict().items() if name not in _NOT_STOCK_FIELDS}
    return GPT2Config(**fields)


@torch.no_grad()
def _largest_logit_difference(model: GPT2HFForCausalLM, stock: GPT2LMHeadModel) -> float:
    config = model.config
    ids = torch.arange(min(64, config.n_positions)).remainder(config.vocab_size).unsqueeze(0)
    ours = model.eval().cpu()(ids).logits.float()
    theirs = stock.eval()(ids).logits.float()
    return float((ours - theirs).abs().max())
