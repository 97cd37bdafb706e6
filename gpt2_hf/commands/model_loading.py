"""Models from arguments or from a folder, with errors that say what to do.

In: `ModelArguments`, or a model path. Out: a `GPT2HFForCausalLM` (and its tokenizer).
"""

import os
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from ..checkpoints import folders
from ..data import LoadedData
from ..data.tokenizer import check_vocabulary, load_tokenizer, num_ids
from ..errors import UserError, first_line
from ..model.configuration_gpt2_hf import GPT2HFConfig
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import ModelArguments
from ..runtime.hub import CONNECTION_ERRORS, ensure_hub_or_offline, is_hub_id
from ..runtime.utilization import free_memory
from .weight_files import check_weight_files

DEFAULT_OUTPUT_DIR = "checkpoints"


def build_config(args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> GPT2HFConfig:
    """The config of a new model: sizes from the arguments, vocabulary and special tokens from the tokenizer."""
    config = GPT2HFConfig(
        vocab_size=num_ids(tokenizer),
        n_positions=args.max_length,
        n_embd=args.d_model,
        n_layer=args.num_layers,
        n_head=args.heads,
        n_inner=args.d_ff,
        resid_pdrop=args.dropout,
        embd_pdrop=args.dropout,
        attn_pdrop=args.dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation=args.attn_implementation,
    )
    config.check_heads()
    return config


def build_model(args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> GPT2HFForCausalLM:
    """A new model, or the weights of `--model_name_or_path` with this run's dropout.

    The tokenizer learns the model's length, with which it is then saved.

    Raises:
        UserError: if the weights cannot be loaded, or do not fit the tokenizer or `--max_length`.
    """
    if args.model_name_or_path is None:
        config = build_config(args, tokenizer)
        _check_memory(config)
        tokenizer.model_max_length = config.n_positions
        try:
            return GPT2HFForCausalLM(config)
        except (ImportError, ValueError) as error:
            raise _attention_error(args.attn_implementation, error) from error
    source = resolve_model_path(args.model_name_or_path, DEFAULT_OUTPUT_DIR, "--model_name_or_path")
    config = read_config(source, "--model_name_or_path")
    if args.max_length > config.n_positions:
        raise UserError(
            f"--max_length {args.max_length} exceeds the {config.n_positions} positions of {args.model_name_or_path}; "
            f"use --max_length {config.n_positions}"
        )
    check_vocabulary(tokenizer, config.num_tokens)
    tokenizer.model_max_length = config.n_positions
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = args.dropout
    return load_weights(source, config, args.attn_implementation, "--model_name_or_path")


def tie_unused_tokens(model: GPT2HFForCausalLM, tokenizer: PreTrainedTokenizerBase, data: LoadedData) -> int:
    """Give the tokens that the training text does not use one common embedding; how many these are."""
    used = data.documents["train"].used_ids(model.config.num_tokens)
    return model.tie_unused_tokens(torch.tensor([*used, *tokenizer.all_special_ids]))


def load_trained(
    model_path: str | os.PathLike[str],
    output_dir: str = DEFAULT_OUTPUT_DIR,
    attn_implementation: str | None = None,
) -> tuple[GPT2HFForCausalLM, PreTrainedTokenizerBase, str]:
    """Load a model and its tokenizer for use.

    Args:
        model_path: a folder, a checkpoint's name or path, or a hub id; ours or stock GPT-2.
        output_dir: the run in which a bare checkpoint name is looked up.
        attn_implementation: attention backend, transformers' choice when left out.

    Returns:
        `(model in evaluation mode, tokenizer, folder or id that was loaded)`.

    Raises:
        UserError: if there is no model, or it has no tokenizer.
    """
    source = resolve_model_path(os.fspath(model_path), output_dir, "--model_path")
    config = read_config(source, "--model_path")
    model = load_weights(source, config, attn_implementation, "--model_path").eval()
    return model, _load_checked_tokenizer(source, config, "--model_path"), source


@dataclass(frozen=True)
class SavedModel:
    """A model whose weights are still to be loaded.

    Attributes:
        source: the folder or hub id.
        config: of the model.
        tokenizer: that was saved beside it; it knows the model's length.
        option: the option that named the model, for messages.
    """

    source: str
    config: GPT2HFConfig
    tokenizer: PreTrainedTokenizerBase
    option: str

    def load(self) -> GPT2HFForCausalLM:
        """The model in evaluation mode, in fp32 on the CPU."""
        return load_weights(self.source, self.config, None, self.option).eval()


def find_trained(model_path: str, option: str = "--model_path") -> SavedModel:
    """Find a model and load its tokenizer. Of the weights only the headers are read: whether the files are complete.

    Args:
        model_path: as for `load_trained`.
        option: that named the model, for messages.

    Raises:
        UserError: if there is no model, if it is damaged, or if it has no tokenizer.
    """
    source = resolve_model_path(model_path, DEFAULT_OUTPUT_DIR, option)
    config = read_config(source, option)
    if os.path.isdir(source):
        check_weight_files(source, config, option)
    return SavedModel(source, config, _load_checked_tokenizer(source, config, option), option)


def load_model_tokenizer(model_name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `--model_name_or_path`; GPT-2's if the model's folder has none but its vocabulary fits.

    Raises:
        UserError: if there is no such model, or its tokenizer is missing and its vocabulary is not GPT-2's.
    """
    option = "--model_name_or_path"
    source = resolve_model_path(model_name_or_path, DEFAULT_OUTPUT_DIR, option)
    return load_own_tokenizer(source, read_config(source, option), option)


def resolve_model_path(reference: str, output_dir: str, option: str) -> str:
    """A folder with a model for a path or checkpoint name, or the reference itself if it is a hub id."""
    try:
        folder = folders.resolve_model(reference, output_dir)
        problem = folders.unreadable(folder)
    except PermissionError as error:  # a folder on the way
        problem = f"{error.filename} cannot be read: {error.strerror}"
    except UserError as error:
        # "name" and "owner/name" may be hub ids; anything with the marks of a path is not.
        owner, _, name = reference.rpartition("/")
        is_of_run = owner in ("", DEFAULT_OUTPUT_DIR) and folders.CHECKPOINT_NAME.fullmatch(name) is not None
        if is_hub_id(reference) and not is_of_run and "/" not in owner and not os.path.isdir(owner):
            ensure_hub_or_offline()
            return reference
        raise UserError(f"{option}: {error}") from error
    if problem is not None:
        raise UserError(f"{option}: {problem}; its owner can allow it with chmod -R a+rX")
    return str(folder)


def read_config(source: str, option: str) -> GPT2HFConfig:
    """Read and check a model's configuration."""
    if os.path.isfile(os.path.join(source, "adapter_config.json")):
        raise UserError(
            f"{option}: {source} is an adapter, not a model; merge it first: peft.AutoPeftModelForCausalLM"
            f".from_pretrained({source!r}).merge_and_unload().save_pretrained(FOLDER), with the tokenizer beside it"
        )
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        raise UserError(
            f"{option}: {source} holds no model (config.json is missing); give a folder with a saved model"
        )
    try:
        config_dict, _ = GPT2HFConfig.get_config_dict(source)
        if config_dict.get("model_type") != GPT2HFConfig.model_type:
            raise UserError(
                f"{option}: {source} is a {config_dict.get('model_type')!r} model; gpt2_hf takes gpt2 and gpt2_hf"
            )
        config = GPT2HFConfig.from_dict(config_dict)
        config.check_heads()
        return config
    except UserError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:  # transformers checks few types
        remedy = "correct its config.json" if os.path.isdir(source) else "give a local folder"
        raise UserError(f"{option}: no model can be loaded from {source!r}: {first_line(error)}; {remedy}") from error


def load_weights(source: str, config: GPT2HFConfig, attn_implementation: str | None, option: str) -> GPT2HFForCausalLM:
    """Load weights (safetensors only) into a model of this config, in fp32.

    Raises:
        UserError: if a file is missing or damaged, or the model needs a weight that is not there.
    """
    if os.path.isdir(source):
        check_weight_files(source, config, option)
    try:
        model, report = GPT2HFForCausalLM.from_pretrained(
            source,
            config=config,
            attn_implementation=attn_implementation,
            dtype="float32",
            use_safetensors=True,
            output_loading_info=True,
        )
    except (*CONNECTION_ERRORS, RuntimeError, SafetensorError) as error:
        reason, *advice = first_line(error).split(" Please do not")
        if advice:  # against the option that is set here
            reason += (
                f" If you trust them, save them anew: GPT2LMHeadModel.from_pretrained({source!r})"
                ".save_pretrained(FOLDER), with the tokenizer beside it"
            )
        raise UserError(f"{option}: the weights of {source!r} cannot be loaded: {reason}") from error
    except (ImportError, ValueError) as error:
        raise _attention_error(attn_implementation, error) from error
    # transformers would draw them at random and go on.
    missing = sorted(report["missing_keys"])
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"{option}: {source!r} lacks weights that the model needs: {missing[0]}{others}")
    return model


def _check_memory(config: GPT2HFConfig) -> None:
    """Refuse a new model whose weights alone are more than the machine can hold now, before any is allocated."""
    width, inner = config.n_embd, config.inner_size
    per_layer = 4 * width**2 + 2 * width * inner + 9 * width + inner
    num_weights = (config.vocab_size + config.n_positions + 2) * width + config.n_layer * per_layer
    needed = num_weights * torch.float32.itemsize
    there = free_memory(swap=True)
    if needed > there:
        raise UserError(
            f"the model would have {num_weights:,} weights, {needed / 2**30:,.1f} GiB, and this machine has "
            f"{there / 2**30:,.1f} GiB free; make it smaller: --d_model {width}, --num_layers {config.n_layer}, "
            f"--d_ff {inner}, --max_length {config.n_positions}"
        )


def _attention_error(attn_implementation: str | None, error: Exception) -> Exception:
    """What to raise for an error while a model is made: the user's, if it is about the backend they asked for."""
    if attn_implementation is None:
        return error
    return UserError(f"--attn_implementation {attn_implementation}: {first_line(error)}; sdpa works everywhere")


def _load_checked_tokenizer(source: str, config: GPT2HFConfig, option: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model; it fits the model's vocabulary, and learns its length."""
    tokenizer = load_own_tokenizer(source, config, option)
    check_vocabulary(tokenizer, config.num_tokens, option)
    tokenizer.model_max_length = config.n_positions
    return tokenizer


def load_own_tokenizer(source: str, config: GPT2HFConfig, option: str) -> PreTrainedTokenizerBase:
    """As `load_model_tokenizer`, of a model that was found and whose config was read."""
    # Asked for a tokenizer that is not there, transformers answers with an empty one.
    has_files = not os.path.isdir(source) or any(
        os.path.isfile(os.path.join(source, name))
        for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json")
    )
    if has_files:
        # as an absolute path, because a folder may be called "gpt2" and hold another tokenizer
        return load_tokenizer(os.path.abspath(source) if os.path.isdir(source) else source, option)
    gpt2 = load_tokenizer()
    if config.num_tokens == num_ids(gpt2):
        return gpt2  # the vocabulary is GPT-2's size, and stock folders often come without a tokenizer
    raise UserError(
        f"{option}: {source} has no tokenizer and its {config.num_tokens:,} ids are not GPT-2's; "
        "save the tokenizer beside the model"
    )
