"""A model that nanoGPT or llm.c has trained, as a folder that this package and transformers load.

In: nanoGPT's `ckpt.pt` or llm.c's `.bin`. Out: a folder with config, safetensors and tokenizer, checked by loading it
and comparing its logits with those of the file. Next stage: `evaluate`, `generate`, `export`, or further training.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..checkpoints.new_folder import require_new_folder, staged_folder
from ..data.tokenizer import check_vocabulary, load_tokenizer, num_ids
from ..errors import UserError
from ..model.configuration_gpt2_hf import GPT2HFConfig
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import ImportArguments
from .foreign_models import ForeignModel, linear_shapes, norm_names, read_foreign_model
from .same_model import is_tied, require_same_logits, save_tokenizer, with_weights

_GPT2_TOKENS = 50257
_GPT2_ROWS = (50257, 50304)  # nanoGPT rounds GPT-2's vocabulary up to a multiple of 64 and does not write so down


def run_import(args: ImportArguments) -> int:
    """The command `import`."""
    transformers_logging.disable_progress_bar()
    target = require_new_folder(args.output_dir)
    foreign = read_foreign_model(args.model_path, args.activation_function)
    tokenizer = _tokenizer_for(foreign, args.tokenizer_name)
    difference = import_model(foreign, target, tokenizer)
    print(f"{args.model_path} ({foreign.program}) is imported to {target}; its logits differ by {difference:.1e}")
    if tokenizer is None:
        print(
            f"no tokenizer is saved beside it: its {foreign.num_tokens or foreign.vocab_size:,} ids are not GPT-2's. "
            "Import it again with --tokenizer_name FOLDER to evaluate it, to generate and to train"
        )
    return 0


def import_model(
    foreign: ForeignModel, output_dir: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> float:
    """Write a foreign model as a `GPT2HFForCausalLM`, complete or not at all.

    Args:
        foreign: what `read_foreign_model` gives.
        output_dir: a new folder.
        tokenizer: saved beside it; its special tokens enter the config.

    Returns:
        The largest difference between the logits of the file and of the folder loaded back.

    Raises:
        UserError: if the sizes make no GPT-2, or the tokenizer has more ids than the model.
        RuntimeError: if the folder does not compute what the file computes.
    """
    config = config_of(foreign, tokenizer)
    model = with_weights(GPT2HFForCausalLM, config, converted_weights(foreign))
    with staged_folder(Path(output_dir)) as staging:
        model.save_pretrained(staging)
        if tokenizer is not None:
            save_tokenizer(tokenizer, staging, config.n_positions)
        return _largest_logit_difference(foreign, staging)


def config_of(foreign: ForeignModel, tokenizer: PreTrainedTokenizerBase | None) -> GPT2HFConfig:
    """The config of the imported model; rows of its embedding without a token count as padding."""
    num_tokens = foreign.num_tokens or (foreign.vocab_size if tokenizer is None else num_ids(tokenizer))
    if tokenizer is not None:
        check_vocabulary(tokenizer, num_tokens if foreign.num_tokens else foreign.vocab_size)
    special = {
        name: None if tokenizer is None else getattr(tokenizer, name)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    try:
        config = GPT2HFConfig(
            vocab_size=foreign.vocab_size,
            n_vocab_padding=foreign.vocab_size - num_tokens,
            n_positions=foreign.block_size,
            n_embd=foreign.n_embd,
            n_layer=foreign.n_layer,
            n_head=foreign.n_head,
            activation_function=foreign.activation,
            resid_pdrop=foreign.dropout,
            embd_pdrop=foreign.dropout,
            attn_pdrop=foreign.dropout,
            tie_word_embeddings=is_tied(foreign.weights),
            **special,
        )
        config.check_heads()
    except ValueError as error:
        raise UserError(f"--model_path: its sizes make no GPT-2: {error}") from error
    return config


def converted_weights(foreign: ForeignModel) -> dict[str, Tensor]:
    """The weights in GPT-2's own layout, `[in, out]`; biases that the model does not have are zero."""
    weights = dict(foreign.weights)
    for name, (num_outputs, _) in linear_shapes(foreign.n_layer, foreign.n_embd):
        weights[f"{name}.weight"] = weights[f"{name}.weight"].t().contiguous()
        weights.setdefault(f"{name}.bias", torch.zeros(num_outputs))
    for name in norm_names(foreign.n_layer):
        weights.setdefault(f"{name}.bias", torch.zeros(foreign.n_embd))
    weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
    return weights


def _tokenizer_for(foreign: ForeignModel, name: str | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of that name; without a name GPT-2's, if the vocabulary is GPT-2's."""
    if name is not None:
        return load_tokenizer(name)
    if foreign.num_tokens == _GPT2_TOKENS or (foreign.num_tokens is None and foreign.vocab_size in _GPT2_ROWS):
        return load_tokenizer()
    return None


@torch.no_grad()
def _largest_logit_difference(foreign: ForeignModel, folder: Path) -> float:
    """Compare the folder with the file, in fp32 on the CPU.

    Raises:
        RuntimeError: if the difference is more than rounding.
    """
    model = GPT2HFForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    num_tokens = model.config.num_tokens
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(num_tokens, (2, min(64, foreign.block_size)), generator=generator)
    expected = foreign.logits(ids)[..., :num_tokens]
    return require_same_logits(expected, model(ids).logits[..., :num_tokens], "imported")
