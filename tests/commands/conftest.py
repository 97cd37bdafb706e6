"""What the tests of the commands share: the tokenizers, and a command whose last line is JSON."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gpt2_hf import load_tokenizer
from gpt2_hf.__main__ import main


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """GPT-2's; tests leave it as it is."""
    return load_tokenizer()


@pytest.fixture(scope="module")
def tiny_tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    """That of the tiny corpus."""
    return AutoTokenizer.from_pretrained(tokenizer_folder)


def evaluate(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """Run `evaluate` and return the JSON that it prints last."""
    assert main(["evaluate", *options]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result
