"""The benchmarks count what they say, and run."""

import importlib.util
import json
import subprocess
import sys

import pytest

from .conftest import REPOSITORY


@pytest.fixture(scope="module")
def throughput():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("throughput", REPOSITORY / "benchmarks" / "throughput.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["throughput"] = module
    spec.loader.exec_module(module)
    return module


def test_operations_of_a_token_are_those_of_the_palm_paper(throughput):
    """GPT-2 124M at 1,024 tokens: 0.85 GFLOP, as 6 N + 12 L H Q T gives by hand."""
    case = throughput.Case("any", (), "124M", 1)
    by_hand = 6 * (12 * 12 * 768**2 + 50257 * 768) + 12 * 12 * 12 * 64 * 1024
    assert throughput.flops_per_token(case, 1024) == by_hand
    assert throughput.flops_per_token(case, 100) == by_hand - 12 * 12 * 768 * 924


def test_padding_is_never_counted(throughput):
    """Peers' batches count the targets of their lines, whatever they are padded to."""
    turns = throughput.Turns(pipe=None, device="cpu")
    collate = throughput.counting(throughput.PaddedCollator(16, 16), turns)
    batch = collate([{"input_ids": [1, 2, 3, 4]}, {"input_ids": [5, 6, 7]}])
    assert batch["input_ids"].shape == (2, 16)
    assert turns.batch_tokens == [3 + 2]


@pytest.mark.slow
def test_a_quick_run_ends_in_one_json_document(tmp_path):
    """Contestants in turns, a table, and JSON as the last line and in the file."""
    command = [sys.executable, "benchmarks/throughput.py", "--device", "cpu", "--quick", "--rounds", "1"]
    command += ["--seconds", "0.1", "--output_file", str(tmp_path / "out.json")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout.strip().splitlines()[-1])
    assert document == json.loads((tmp_path / "out.json").read_text())
    for case in document["results"]:
        assert not case["failures"] and case["ratios"]["stock"]["speed"] > 0
