"""The values that options may have: the range of each number, by name, and what is refused of any option.

A name means the same in every arguments class that has it. In: the fields of a class, from its `__post_init__`. What
several options make of each other is checked by the class itself.
"""

import math
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError

# Micro-batches beyond any device. torch makes lists of them; with several processes a last batch is filled up.
LARGEST_BATCH = 2**20

_BOUNDS = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}

_WHOLE = {"at least": 1}
_BATCH = {"at least": 1, "at most": LARGEST_BATCH}
_SEED = {"at least": 0, "below": 2**31}  # NumPy takes 32 bits, and each process adds its number
_POSITIVE = {"above": 0}
_NOT_NEGATIVE = {"at least": 0}
_FRACTION = {"at least": 0, "below": 1}

RANGES: dict[str, Mapping[str, float]] = {
    **dict.fromkeys(("d_model", "num_layers", "num_heads", "d_ff", "nproc", "nodes"), _WHOLE),
    **dict.fromkeys(("max_train_samples", "max_eval_samples", "preprocessing_num_workers"), _WHOLE),
    **dict.fromkeys(("shuffle_buffer_size", "global_batch_size", "save_total_limit"), _WHOLE),
    **dict.fromkeys(("early_stopping_patience", "max_new_tokens", "stride", "min_frequency"), _WHOLE),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "batch_size"), _BATCH),
    **dict.fromkeys(("gradient_accumulation_steps", "num_samples"), _BATCH),
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    **dict.fromkeys(("learning_rate", "muon_learning_rate", "adam_epsilon", "distill_temperature"), _POSITIVE),
    **dict.fromkeys(("num_train_epochs", "max_training_hours"), _POSITIVE),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), _POSITIVE),
    **dict.fromkeys(("link_gb_per_second", "network_gb_per_second"), _POSITIVE),
    **dict.fromkeys(("weight_decay", "muon_weight_decay", "max_grad_norm", "warmup_steps"), _NOT_NEGATIVE),
    **dict.fromkeys(("dataloader_num_workers", "sample_tokens", "temperature", "top_k"), _NOT_NEGATIVE),
    **dict.fromkeys(("dropout", "adam_beta1", "adam_beta2", "muon_momentum", "label_smoothing_factor"), _FRACTION),
    "max_length": {"at least": 2},  # a token is predicted from one before it
    "vocab_size": {"at least": 257, "at most": 1 << 24},  # a byte each and the end of text; beyond any in use
    "port": {"at least": 1, "at most": 65_535},
    "distill_alpha": {"at least": 0, "at most": 1},
    "ema_decay": {"above": 0, "below": 1},
    "top_p": {"above": 0, "at most": 1},
    "validation_split_percentage": {"above": 0, "below": 100},
}


def without_paths(value: Any) -> Any:
    """The value with a text in place of each path, which programs may state; also inside a list or an object."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def check_values(values: Mapping[str, Any], may_be_empty: Sequence[str] = ()) -> None:
    """Raise a `UserError` if a number among the values is not finite or out of range, or a text is empty.

    Args:
        values: of options, by name.
        may_be_empty: names of those that may be an empty text.
    """
    require_finite(values)
    require_filled({name: value for name, value in values.items() if name not in may_be_empty})
    require_in_range(values)


def require_in_range(values: Mapping[str, Any]) -> None:
    """Raise a `UserError` if a number among the values is out of its range; `None` is none."""
    for name, value in values.items():
        for words, limit in RANGES.get(name, {}).items():
            if value is not None and not _BOUNDS[words](value, limit):
                raise UserError(f"--{name} must be {words} {limit:,}, got {_shown(value)}")


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def require_finite(values: Mapping[str, Any]) -> None:
    """Raise a `UserError` if a number among the values is infinite or none, also inside a list or an object."""
    for name, value in values.items():
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        wrong = [number for number in inner if isinstance(number, float) and not math.isfinite(number)]
        if wrong:
            raise UserError(f"--{name} must be a finite number, got {wrong[0]}")


def require_filled(values: Mapping[str, Any]) -> None:
    """Raise a `UserError` if a text among the values is empty, as that of a shell's variable that is not set."""
    for name, value in values.items():
        if "" in (value if isinstance(value, list) else [value]):
            raise UserError(f"--{name} is empty; give a value, or leave the option out")
