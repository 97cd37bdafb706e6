"""gpt2_hf.data.sampling: every sample once, in an order of seed and epoch alone, on any number of processes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gpt2_hf.data import DocumentSamples, FlatteningCollator, PaddingCollator
from gpt2_hf.data.sampling import FILLER, EpochSampler, offset_of, train_sampler
from gpt2_hf.model.chunked_loss import IGNORE_INDEX

from ..data_fixtures import documents_of

sizes = st.integers(1, 60)


def lengths_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 1000, count)


@given(count=sizes, batch=st.integers(1, 16), seed=st.integers(0, 9), epoch=st.integers(0, 9), bucketed=st.booleans())
def test_every_sample_once(count, batch, seed, epoch, bucketed):
    """An epoch has every sample exactly once, and filler only to complete the last batch."""
    sampler = EpochSampler(count, seed, batch, lengths_of(count) if bucketed else None)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order[:count]) == list(range(count))
    assert order[count:] == [FILLER] * (-count % batch)
    assert len(sampler) == len(order)


@pytest.mark.parametrize("bucketed", [False, True])
def test_order_is_a_function_of_seed_and_epoch(bucketed):
    """The order does not depend on what was drawn before, and differs between seeds and epochs."""

    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(500, seed, 8, lengths_of(500) if bucketed else None)
        for other in (3, 1, epoch):
            sampler.set_epoch(other)
            list(sampler)
        torch.rand(3), np.random.rand(3)
        return list(sampler)

    orders = {(seed, epoch): tuple(order(seed, epoch)) for seed in (0, 1, 42) for epoch in (0, 1, 2)}
    assert len(set(orders.values())) == 9
    assert all(tuple(order(*key)) == value for key, value in orders.items())


def test_blocks_begin_elsewhere_in_each_epoch():
    """The order is the plain one; all samples of an epoch have one offset, which is of seed and epoch alone."""
    plain, shifted = EpochSampler(50, 3, 8), EpochSampler(50, 3, 8, num_offsets=128)
    offsets = []
    for epoch in (4, 0, 1, 2, 4):
        plain.set_epoch(epoch), shifted.set_epoch(epoch)
        order = list(shifted)
        assert [index if index == FILLER else index % 50 for index in order] == list(plain)
        offsets.append({offset_of(index, 50) for index in order if index != FILLER})
    assert all(len(offset) == 1 and 0 <= min(offset) < 128 for offset in offsets)
    assert offsets[0] == offsets[-1] and len(set(map(min, offsets))) == 4


def test_unshuffled():
    """Without shuffling the order is that of the data."""
    assert list(EpochSampler(5, 0, 2, shuffle=False)) == [0, 1, 2, 3, 4, FILLER]


def test_buckets_save_padding():
    """Batches by length hold far more text, and are in no order of length themselves."""
    lengths = lengths_of(4000)

    def batches(sampler: EpochSampler) -> np.ndarray:
        return lengths[np.array(list(sampler))].reshape(-1, 8)

    shuffled = batches(EpochSampler(4000, 0, 8))
    bucketed = batches(EpochSampler(4000, 0, 8, lengths))
    share = [part.sum() / (part.max(axis=1).sum() * 8) for part in (shuffled, bucketed)]
    assert share[0] < 0.6 and share[1] > 0.95
    assert abs(np.corrcoef(np.arange(500), bucketed.mean(axis=1))[0, 1]) < 0.2


def loader_of(samples, sampler, batch, processes, rank):
    loader = DataLoader(samples, batch_size=batch, sampler=sampler, collate_fn=lambda items: items)
    return prepare_data_loader(
        loader, device=torch.device("cpu"), num_processes=processes, process_index=rank, put_on_device=False
    )


@pytest.mark.parametrize("count", [64, 61, 65])
@pytest.mark.parametrize("bucketed", [False, True])
def test_same_batches_on_any_number_of_processes(count, bucketed):
    """The samples of each step are the same on 1, 2 and 4 processes, the incomplete last step included."""
    samples = DocumentSamples(documents_of([[i, i, i] for i in range(1, count + 1)]), 8)

    def steps(processes: int) -> list[list[int]]:
        shares = []
        for rank in range(processes):
            sampler = EpochSampler(count, 7, 8, lengths_of(count) if bucketed else None)
            loader = loader_of(samples, sampler, 8 // processes, processes, rank)
            loader.set_epoch(2)
            shares.append([[int(item["input_ids"][0]) for item in batch] for batch in loader])
        assert len({len(share) for share in shares}) == 1
        return [sorted(i for share in step for i in share) for step in zip(*shares, strict=True)]

    alone = steps(1)
    assert steps(2) == alone and steps(4) == alone
    assert sorted(i for step in alone for i in step if i) == list(range(1, count + 1))


def test_skipped_batches_are_not_read():
    """Going on in the middle of an epoch gives the batches that are left, and reads no sample before them."""
    read = []

    class Watched(DocumentSamples):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    samples = Watched(documents_of([[i, i] for i in range(100)]), 8)

    def batches(skipped: int) -> list[list[int]]:
        sampler = EpochSampler(100, 0, 8, lengths_of(100))
        loader = loader_of(samples, sampler, 8, 1, 0)
        if skipped:
            loader = skip_first_batches(loader, skipped)
        loader.set_epoch(3)
        return [[int(item["input_ids"][0]) for item in batch] for batch in loader]

    whole = batches(0)
    read.clear()
    assert batches(9) == whole[9:]
    assert len(read) == sum(map(len, whole[9:]))


def test_filler_has_no_targets():
    """Filler adds no target in either layout, and leaves those of the samples as they are."""
    samples = DocumentSamples(documents_of([[1, 2, 3], [4, 5, 6]]), 8)
    for collator in (PaddingCollator(0), FlatteningCollator()):
        plain = collator([samples[0], samples[1]])["shift_labels"]
        filled = collator([samples[0], samples[1], samples[FILLER]])["shift_labels"]
        assert filled[filled != IGNORE_INDEX].tolist() == plain[plain != IGNORE_INDEX].tolist() == [2, 3, 5, 6]


@pytest.mark.parametrize(
    ("batch_size", "world_size", "length"), [(4, 1, 8), (5, 1, 5), (1 << 20, 1, 5), (2, 2, 8), (5, 2, 10)]
)
def test_a_batch_larger_than_the_text_is_not_filled_up(batch_size, world_size, length):
    """Five samples: batches have one size, and every process its share; a single batch needs neither."""
    args = SimpleNamespace(order_seed=1, train_batch_size=batch_size, world_size=world_size)
    args.samples_per_step, args.train_sampling_strategy = batch_size * world_size, "sequential"

    class Samples:
        lengths, mixture, num_offsets = None, None, 1

        def __len__(self):
            return 5

    sampler = train_sampler(args, Samples())
    assert len(sampler) == len(list(sampler)) == length
