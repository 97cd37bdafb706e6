"""gpt2_hf.data.collators: one batch, two layouts, the very same positions and targets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2_hf.data import FlatteningCollator, PaddingCollator
from gpt2_hf.model.chunked_loss import IGNORE_INDEX

batches = st.lists(st.lists(st.integers(0, 999), min_size=2, max_size=40), min_size=1, max_size=8)


def as_samples(batch):
    return [{"input_ids": np.array(ids)} for ids in batch]


def pairs_of_padded(batch):
    """(position, input, target) of every scored place, row by row."""
    kept = batch["shift_labels"] != IGNORE_INDEX
    positions = torch.arange(kept.shape[1]).expand(kept.shape)
    return torch.stack([positions[kept], batch["input_ids"][kept], batch["shift_labels"][kept]])


@given(batch=batches, pad=st.integers(0, 999))
def test_same_positions_and_targets(batch, pad):
    """Padded and flattened batches score the same targets after the same inputs at the same positions."""
    padded = PaddingCollator(pad_token_id=pad)(as_samples(batch))
    flat = FlatteningCollator()(as_samples(batch))
    flat_pairs = torch.stack([flat[name][0] for name in ("position_ids", "input_ids", "shift_labels")])
    assert torch.equal(pairs_of_padded(padded), flat_pairs)
    assert padded["shift_labels"].dtype == flat["shift_labels"].dtype == torch.int64


@given(batch=batches)
def test_flattened_boundaries(batch):
    """Positions restart exactly where the cumulative lengths say that a document begins."""
    flat = FlatteningCollator()(as_samples(batch))
    starts = torch.nonzero(flat["position_ids"][0] == 0).flatten().tolist()
    assert flat["cu_seq_lens_q"].tolist() == [*starts, flat["input_ids"].shape[1]]
    assert flat["cu_seq_lens_q"].dtype == torch.int32
    assert torch.equal(flat["cu_seq_lens_q"], flat["cu_seq_lens_k"])
    assert flat["max_length_q"] == flat["max_length_k"] == max(len(ids) - 1 for ids in batch)


def test_padding_is_on_the_right_and_not_scored():
    """Padding comes after the text, holds the pad id, and has the target that is ignored."""
    batch = PaddingCollator(pad_token_id=7)(as_samples([[1, 2, 3], [4, 5]]))
    assert batch["input_ids"].tolist() == [[1, 2], [4, 7]]
    assert batch["shift_labels"].tolist() == [[2, 3], [5, IGNORE_INDEX]]


def test_padding_to_a_fixed_length():
    """With a fixed length every batch has it, however short its samples."""
    batch = PaddingCollator(pad_token_id=0, pad_to_length=6)(as_samples([[1, 2], [3, 4, 5]]))
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (2, 6)
    assert int((batch["shift_labels"] != IGNORE_INDEX).sum()) == 3


@pytest.mark.parametrize("collator", [PaddingCollator(0), FlatteningCollator()])
def test_the_samples_stay_as_they_are(collator):
    """A batch is a copy: changing it does not reach the samples."""
    samples = as_samples([[1, 2, 3], [4, 5, 6]])
    collator(samples)["input_ids"].fill_(9)
    assert [sample["input_ids"].tolist() for sample in samples] == [[1, 2, 3], [4, 5, 6]]
