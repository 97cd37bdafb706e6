"""Perplexity of a loss."""

import math


def perplexity(loss: float) -> float:
    """`exp(loss)`; infinity beyond what a float holds, NaN for NaN."""
    return math.inf if loss > 700 else math.exp(loss)
