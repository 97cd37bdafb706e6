"""A text in pieces, and whether a difference between two models is statistically significant."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_hf.commands.significance import Places, paired_difference, piece_borders

# scored tokens of each sample, and places between it and the one before that are not scored
runs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=12)


def places_of(runs):
    """`Places`, and every scored place."""
    first, place = [], 0
    for count, gap in runs:
        first.append(place + gap)
        place += gap + count
    counts = [count for count, _ in runs]
    scored = [start + i for start, count in zip(first, counts, strict=True) for i in range(count)]
    return Places(np.array(first), np.array(counts)), np.array(scored, dtype=int)


@settings(max_examples=100)
@given(runs=runs, num_processes=st.integers(1, 4))
def test_places_of_tokens(runs, num_processes):
    """The place of each token, and the tokens before each place, on any number of processes."""
    places, scored = places_of(runs)
    assert places.of_tokens(np.arange(len(scored))).tolist() == scored.tolist()
    asked = np.arange(0, 160, 3)
    before = sum(places.of_process(rank, num_processes).tokens_before(asked) for rank in range(num_processes))
    assert before.tolist() == [(scored < place).sum() for place in asked]


def borders(num_tokens, starts, sample=64):
    """Borders of a text whose tokens, all but the first, are scored in samples of one length."""
    first = np.arange(1, num_tokens, sample)
    return piece_borders(Places(first, np.minimum(sample, num_tokens - first)), np.asarray(starts))


def test_pieces_are_whole_documents_of_about_one_length():
    """At most 40 pieces; each begins with a document, and none is much longer than the others."""
    starts = np.concatenate([[0], np.cumsum(np.random.default_rng(0).integers(1, 60, 2000))])
    found = borders(int(starts[-1]), starts[:-1])
    sizes = np.diff([0, *found, starts[-1]])
    assert 35 <= len(sizes) <= 40 and set(found) <= set(starts)
    assert sizes.max() - sizes.min() <= 2 * 60 + 64


def test_few_documents_are_cut():
    """Twenty or more long documents are the pieces; where there are less, they are cut."""
    long_ones = np.arange(30) * 5000
    assert borders(150_000, long_ones).tolist() == long_ones[1:].tolist()
    assert len(borders(150_000, [0])) == len(borders(150_000, long_ones[:10])) == 39


@pytest.mark.parametrize(("num_tokens", "num_pieces"), [(2001, 20), (2000, 1), (2, 1)])
def test_a_short_text_is_one_piece(num_tokens, num_pieces):
    """20 pieces of 100 scored tokens are the least; from less text nothing is concluded."""
    assert len(borders(num_tokens, [0])) + 1 == num_pieces


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    """Pieces with effects of their own: 95 % of the intervals, give or take, hold the true difference."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        tokens = generator.integers(2000, 3000, 60)
        difference = tokens * (0.01 + generator.normal(0, 0.02, 60))
        interval = paired_difference(difference, np.zeros(60), tokens, draws=500).interval
        hits += interval[0] <= 0.01 <= interval[1]
    assert 180 <= hits <= 198


def test_the_difference_is_paired():
    """What makes both models' pieces easy or hard is no noise; swapped, the difference has the other sign."""
    generator = np.random.default_rng(2)
    tokens = np.full(50, 1000)
    easy_or_hard = generator.normal(5000, 500, 50)
    first, second = easy_or_hard + generator.normal(-20, 20, 50), easy_or_hard
    one, other = paired_difference(first, second, tokens), paired_difference(second, first, tokens)
    assert one.nats == pytest.approx((first - second).sum() / 50_000)
    assert one.is_beyond_chance and one.interval[1] < 0
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]), abs=2e-4)
    assert one == paired_difference(first, second, tokens)  # the draws have a seed
    apart = generator.permutation(second)
    assert not paired_difference(first, apart, tokens).is_beyond_chance


def test_what_is_said_of_a_difference():
    """Which one is better, by how much, and whether that is statistically significant."""
    tokens = np.full(100, 1000)
    noise = np.random.default_rng(3).normal(0, 10, 100)
    clear = paired_difference(noise - 50, np.zeros(100), tokens).in_words("a", "b")
    assert clear.startswith("a is better than b by 0.05")
    assert clear.endswith("over 100 segments of the text): statistically significant (95% interval excludes 0)")
    unclear = paired_difference(noise - noise.mean() + 0.5, np.zeros(100), tokens).in_words("a", "b")
    assert unclear.startswith("b is better than a by 0.0005 nats per token (95% interval -0.00")
    assert unclear.endswith(": not statistically significant (95% interval includes 0)")
    short = paired_difference(np.array([1.0]), np.array([2.0]), np.array([10])).in_words("a", "b")
    assert short.endswith(
        "the text is too short for a significance test, which takes at least 20 segments of 100 scored tokens"
    )
    assert paired_difference(noise, noise, tokens).in_words("a", "b") == "a and b have the same loss"
    broken = paired_difference(np.full(100, np.nan), noise, tokens)
    assert broken.is_beyond_chance is None
    assert broken.in_words("a", "b") == "a and b cannot be compared: a loss is not a finite number"
