"""Dropout with four decisions from each random number: its rate, its independence, and who seeds it."""

import pytest
import torch

from gpt2_hf.model.dropout import Dropout, draw_seed, exact_probability, keep_mask


def drop_mask(shape, p):
    """Which elements are dropped, bool."""
    return keep_mask(shape, p, draw_seed()) == 0


@pytest.mark.parametrize("p", [0.1, 0.5, 1 / 3])
def test_rate_is_the_one_asked_for(p):
    """Over a million draws the share that is dropped lies within five standard deviations."""
    torch.manual_seed(0)
    count = 1_000_003
    dropped = int(drop_mask((count,), p).sum())
    assert abs(dropped / count - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1 / 65536
    assert abs(exact_probability(p) - p) <= 0.5 / 65536


def test_neighbours_are_independent():
    """The four decisions of one number tell nothing about each other, nor does the next number."""
    torch.manual_seed(0)
    dropped = drop_mask((1_000_000,), 0.1).double()
    for lag in (1, 2, 3, 4, 8):
        assert abs(float((dropped[:-lag] * dropped[lag:]).mean()) - 0.01) < 1e-3


def test_torch_seeds_the_mask():
    """The same state of torch's generator gives the same mask; the generator moves on."""
    torch.manual_seed(5)
    first, second = drop_mask((64, 64), 0.5), drop_mask((64, 64), 0.5)
    torch.manual_seed(5)
    assert torch.equal(drop_mask((64, 64), 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_survivors_are_scaled_and_gradients_follow_the_mask(dtype):
    """The mean is kept; an element's gradient is the factor it was multiplied with."""
    torch.manual_seed(0)
    values = torch.ones(200, 300, dtype=dtype, requires_grad=True)
    output = Dropout(0.1)(values)
    assert output.dtype == dtype
    assert set(output.detach().unique().tolist()) <= {0.0, (torch.ones((), dtype=dtype) / 0.9).item()} | {
        (torch.ones((), dtype=dtype) / (1 - exact_probability(0.1))).item()
    }
    assert output.float().mean().item() == pytest.approx(1.0, abs=0.01)
    output.sum().backward()
    assert torch.equal(values.grad, output.detach())


def test_nothing_happens_in_evaluation_and_all_is_dropped_at_one():
    """The edges are torch's own."""
    values = torch.randn(10, 10)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    assert not Dropout(1.0)(values).any()
