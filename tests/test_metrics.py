"""Loss and perplexity are sums over tokens, also through the `evaluate` library."""

import math
from pathlib import Path

import evaluate
import pytest

from gpt2_hf import metrics
from gpt2_hf.metrics import Perplexity
from gpt2_hf.perplexity import perplexity


def test_metric_weighs_tokens_not_batches():
    """A batch of nine tokens counts nine times as much as a batch of one."""
    result = Perplexity().compute(predictions=[9.0, 5.0], references=[9, 1])
    assert result == {"loss": 1.4, "perplexity": pytest.approx(math.exp(1.4)), "tokens": 10}


def test_metric_accumulates_batches():
    """add_batch and compute at the end is the same as compute at once."""
    metric = Perplexity()
    metric.add_batch(predictions=[9.0], references=[9])
    metric.add_batch(predictions=[5.0], references=[1])
    assert metric.compute()["loss"] == 1.4


def test_metric_refuses_an_empty_split():
    """No token scored is an error, not a NaN."""
    with pytest.raises(ValueError, match="no token was scored"):
        Perplexity().compute(predictions=[0.0], references=[0])


def test_perplexity_of_extremes():
    """Beyond a float's range it is infinite; NaN stays NaN."""
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))
    for loss in (0.0, 1e6, math.nan):  # the metric is a file of its own
        value = Perplexity().compute(predictions=[loss], references=[1])["perplexity"]
        assert value == pytest.approx(perplexity(loss), nan_ok=True)


def test_others_load_the_metric_by_its_file(tmp_path):
    """`evaluate.load` takes the file, copied or not: it needs nothing of this package, and no network."""
    copy = tmp_path / "token_perplexity.py"
    copy.write_text(Path(metrics.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    for path in (metrics.__file__, str(copy)):
        metric = evaluate.load(path)
        assert isinstance(metric, evaluate.Metric) and "nats" in metric.inputs_description
        for nll, tokens in ((9.0, 9), (5.0, 1)):
            metric.add(prediction=nll, reference=tokens)
        assert metric.compute() == {"loss": 1.4, "perplexity": pytest.approx(math.exp(1.4)), "tokens": 10}
    combined = evaluate.combine([evaluate.load(str(copy))])
    assert combined.compute(predictions=[3.0], references=[2])["loss"] == 1.5
