"""Exact loss and perplexity: sums over tokens, never means of means.

The loss of a split is the sum of its token losses over the number of its scored tokens, whatever the batches;
perplexity is its exponential (Jurafsky and Martin, *Speech and Language Processing*, section 3.3).
"""

import math
from collections.abc import Iterable
from typing import Any

import datasets
import evaluate


class Perplexity(evaluate.Metric):
    """Token-weighted loss and perplexity as an `evaluate.Metric`.

    Predictions are sums of token losses in nats, references the numbers of tokens they are over; one pair per
    batch, of any size. Example:

        >>> Perplexity().compute(predictions=[12.0, 3.0], references=[4, 1])["loss"]
        3.0
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Loss per token in nats and its exponential, exact for batches of any size.",
            citation="",
            inputs_description="predictions: summed token losses (nats); references: numbers of scored tokens.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Iterable[float], references: Iterable[int], **kwargs: Any) -> dict[str, float]:
        num_tokens = sum(references)
        if num_tokens < 1:
            raise ValueError("no token was scored, so there is no perplexity")
        loss = math.fsum(predictions) / num_tokens
        # as `gpt2_hf.perplexity`, which `evaluate.load` does not find: it takes this file alone
        return {"loss": loss, "perplexity": math.inf if loss > 700 else math.exp(loss), "tokens": num_tokens}
