"""One table of cards: in the package, in README, in the documentation, and in the plan on a card."""

from dataclasses import dataclass

import pytest
import torch

from gpt2_hf.options.arguments import DataArguments, ModelArguments
from gpt2_hf.options.parsing import parse
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.planning.cards import BLOCK, CARDS, GIB, PEAKS, SAMPLES_PER_STEP, card_of, describe
from gpt2_hf.runtime.utilization import card_memory

from ..conftest import REPOSITORY


@dataclass
class Properties:
    """What torch tells of a card."""

    total_memory: int


def rows_of(page, width):
    """The cells of the table rows of a page that have so many columns."""
    lines = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in rows if len(row) == width]


def test_readme_has_the_rows_of_the_package():
    """What to type, tokens in a micro-batch, and why."""
    rows = [[card.name, f"`{card.flags}`", f"{card.tokens_at_once:,} tokens", card.reason] for card in CARDS]
    table = rows_of("README.md", 4)
    begin = next(i for i, row in enumerate(table) if row[0] == "GPU")
    assert table[begin + 2 : begin + 2 + len(CARDS)] == rows
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert f"{SAMPLES_PER_STEP * BLOCK:,} tokens per step whatever the GPU" in readme


def test_the_page_for_small_cards_has_the_peaks_of_the_package():
    """And its command is the first row's; it leads to the others."""
    rows = [[str(size), f"{size * BLOCK:,}", f"{peak:g} GiB"] for size, peak in PEAKS.items()]
    assert rows_of("docs/how-to/small-card.md", 3)[2:] == rows
    page = (REPOSITORY / "docs/how-to/small-card.md").read_text("utf-8")
    assert f"--sequence_mode blocks {CARDS[0].flags}\n" in page
    assert f"](../../README.md) says what to type on {CARDS[1].name} and on {CARDS[2].name}." in page


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_the_flags_are_the_same_step_on_every_card(card):
    """They are understood, and 64 blocks are a step, in whole parts."""
    classes = (ModelArguments, DataArguments, GPT2HFTrainingArguments)
    parsed = parse(classes, ["--use_cpu", *card.flags.split()], str(REPOSITORY / "training_args" / "base.json"))
    args = parsed.values[-1]
    assert (args.train_batch_size, args.samples_per_step) == (card.batch_size, SAMPLES_PER_STEP)
    assert PEAKS[card.batch_size] <= card.room_gib


@pytest.mark.parametrize(
    ("gib", "batch_size"),
    [(3.9, None), (5.8, 4), (7.6, 8), (14.6, 16), (22.1, 32), (23.6, 32), (79.1, 64), (139.8, 64)],
)
def test_a_plan_on_a_card_says_what_fits(gib, batch_size, monkeypatch):
    """By the memory that torch tells of; as much as a row of the table, for a GPU that is one."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties(int(gib * GIB)))
    memory = card_memory(torch.device("cuda"))
    card = card_of(memory)
    assert (card.batch_size if card else None) == batch_size
    line = describe(memory)
    assert f"{gib:.1f} GiB" in line and "--batch_size" in line
    if card:
        assert PEAKS[batch_size] <= card.room_gib < gib
        assert card.flags in line and card.reason in line and "65,536 per step" in line


def test_a_plan_on_a_cpu_speaks_of_no_card():
    """There is none."""
    assert card_memory(torch.device("cpu")) == 0
