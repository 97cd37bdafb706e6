"""What a model says of a batch, in the layout in which transformers' Trainer hands it to metrics.

In: outputs and inputs of a batch, of any collator. Out: one row per sample, with labels that are not shifted.

This package's collators leave out the last token of a sample, which predicts nothing, and give targets instead of
labels; `FlatteningCollator` has all samples in one row. Metrics that are written for transformers shift the labels
themselves, so each row gets its last position back.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..model.chunked_loss import IGNORE_INDEX


def one_row_per_sample(outputs: tuple, inputs: dict[str, Any], label_names: list[str]) -> tuple[tuple, Any]:
    """Outputs and labels of a batch.

    Args:
        outputs: of the model, tensors `[B, T, …]` or nested tuples of them.
        inputs: of the model.
        label_names: inputs that are labels, where a collator of transformers has made the batch.

    Returns:
        The outputs, and the labels. For `shift_labels` `[B, T]` both have T + 1 positions, for packed samples S rows:
        logits at i belong to the label at i + 1, as everywhere in transformers; −100 fills up.
    """
    if inputs.get("shift_labels") is None:
        labels = tuple(inputs.get(name) for name in label_names)
        return outputs, labels[0] if len(labels) == 1 else labels
    ids, targets = (_as_rows(inputs[name], inputs) for name in ("input_ids", "shift_labels"))
    first = ids[:, :1].masked_fill((targets == IGNORE_INDEX).all(dim=1, keepdim=True), IGNORE_INDEX)
    return _extended(outputs, inputs), torch.cat([first, targets], dim=1)


def _extended(value: Any, inputs: dict[str, Any]) -> Any:
    """Nested outputs as rows of samples, each with a last position that predicts nothing."""
    if isinstance(value, tuple | list):
        return tuple(_extended(part, inputs) for part in value)
    if not isinstance(value, Tensor) or value.shape[:2] != inputs["input_ids"].shape:
        return value
    rows = _as_rows(value, inputs)
    return torch.cat([rows, torch.full_like(rows[:, :1], IGNORE_INDEX)], dim=1)


def _as_rows(value: Tensor, inputs: dict[str, Any]) -> Tensor:
    """`[1, T, …]` of packed samples to `[S, L, …]`; other batches have rows already."""
    ends = inputs.get("cu_seq_lens_q")
    if ends is None:
        return value
    return pad_sequence(value[0].split(ends.diff().tolist()), batch_first=True, padding_value=IGNORE_INDEX)
