"""Stopping when evaluations bring nothing better: what transformers' callback left in a checkpoint."""

from typing import Any

from transformers import EarlyStoppingCallback, TrainerState


def is_out_of_patience(state: TrainerState, patience: int | None) -> bool:
    """Whether the run of a checkpoint's state was stopped early, and would be again with this patience."""
    saved: Any = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
    counts = [
        entry.get("attributes", {}).get("early_stopping_patience_counter", 0)
        for entry in (saved if isinstance(saved, list) else [saved])
    ]
    return patience is not None and max(counts) >= patience
