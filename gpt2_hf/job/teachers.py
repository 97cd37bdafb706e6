"""The models that a run learns from beside its text (`--distill_from`).

In: their paths. Out: models on the host, each with a fingerprint of its weights, or one line about what is wrong.
"""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ..commands.model_loading import (
    DEFAULT_OUTPUT_DIR,
    load_own_tokenizer,
    load_weights,
    read_config,
    resolve_model_path,
)
from ..errors import UserError
from ..model.configuration_gpt2_hf import GPT2HFConfig
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..trainer.distillation import fingerprint

_OPTION = "--distill_from"


class Teacher(NamedTuple):
    """A model that is learned from.

    Attributes:
        source: folder or hub id.
        model: its weights, in fp32.
        fingerprint: SHA-256 of them, by which a resumed run knows that they are the same.
    """

    source: str
    model: GPT2HFForCausalLM
    fingerprint: str


def find_teachers(
    paths: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[tuple[str, GPT2HFConfig]]:
    """Where the teachers are, and what they are; their weights, which take longer, are not read yet.

    Raises:
        UserError: if there is none, it has another tokenizer, or fewer positions than a sample.
    """
    found = []
    for path in paths:
        source = resolve_model_path(path, DEFAULT_OUTPUT_DIR, _OPTION)
        config = read_config(source, _OPTION)
        if load_own_tokenizer(source, config, _OPTION).get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"{_OPTION}: {source} has another tokenizer than this run, so its probabilities are those of other "
                f"tokens; use --tokenizer_name {source}, or another teacher"
            )
        if config.n_positions < max_length:
            raise UserError(
                f"{_OPTION}: {source} has {config.n_positions} positions and the samples have {max_length}; use "
                f"--max_length {config.n_positions}"
            )
        found.append((source, config))
    return found


def load_teachers(
    found: Sequence[tuple[str, GPT2HFConfig]], model: GPT2HFForCausalLM, attn_implementation: str | None
) -> list[Teacher]:
    """Load the weights of teachers.

    Args:
        found: by `find_teachers`.
        model: the student.
        attn_implementation: attention backend, the student's.

    Raises:
        UserError: if weights cannot be loaded, or stand for another number of tokens than the student's.
    """
    teachers = []
    for source, config in found:
        if config.num_tokens != model.config.num_tokens:
            raise UserError(
                f"{_OPTION}: {source} has {config.num_tokens:,} tokens and the model {model.config.num_tokens:,}; "
                "teachers and model must have the same"
            )
        teacher = load_weights(source, config, attn_implementation, _OPTION).eval()
        teachers.append(Teacher(source, teacher, fingerprint(teacher)))
    return teachers
