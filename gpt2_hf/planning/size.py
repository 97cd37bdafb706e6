"""Which size of model suits a text, a machine and a time: the rule behind `--size auto`.

In: the tokens of the text, the seconds there are, and how fast each size trains, measured. Out: `Candidate`s with the
validation loss that each is expected to reach. Nothing here looks at a machine or a clock.

The rule is a fit over runs of this package, which `benchmarks/dial.py --fit` makes again; docs/how-to/size-auto.md
says where it holds.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# An evaluation computes a third of what a training step on the same tokens does.
_EVALUATION_SPEED = 3.0
# Sizes that are measured beyond the best one so far, because no speed is measured quite exactly.
_BEYOND_THE_BEST = 2
# What a weight of the embeddings counts, of which a token reads one row, against one of the blocks. Of 0, 0.02, 0.05,
# 0.1, 0.25 and 1 this gave the best choices for texts that the rule was not fitted to.
_EMBEDDING = 0.05
# Evaluations take this share of the time at the most, but three points are needed to see a curve.
_EVALUATION_SHARE, _LEAST_EVALUATIONS = 0.1, 3
# Where there is time for it, no run is without one for longer.
_SECONDS_BETWEEN_EVALUATIONS = 1800.0
# Fewer steps than these learn how often words are and little else.
MIN_STEPS = 100
# A text that is read less often than this is not memorised.
_EPOCHS_TO_REMEMBER = 3
LEAST_DECAY = 0.1
_SHORTEST_MEMORY = 50.0  # steps; 25 were worse


@dataclass(frozen=True, order=True)
class Size:
    """Width and depth of a GPT-2."""

    d_model: int
    num_layers: int

    def __str__(self) -> str:
        return f"{self.d_model} × {self.num_layers}"

    @property
    def block_parameters(self) -> int:
        """Weights in the matrices of the blocks."""
        return 12 * self.num_layers * self.d_model**2

    def capacity(self, parameters: int) -> float:
        """All weights in use as so many of the blocks; see `LossRule`."""
        return self.block_parameters + _EMBEDDING * (parameters - self.block_parameters)


# Each has about twice the arithmetic of the one before; heads of 64 channels.
LADDER = (
    *(Size(64, 2), Size(64, 4), Size(128, 4), Size(192, 4), Size(192, 6), Size(256, 6), Size(320, 8), Size(384, 10)),
    *(Size(512, 10), Size(640, 12), Size(768, 12), Size(1024, 16), Size(1280, 24)),
)


@dataclass(frozen=True)
class LossRule:
    """Expected validation loss in nats per token, up to a constant of the text: `floor` is that of WikiText-2.

        loss = floor + capacity / N^alpha + data / D'^beta

    N is `Size.capacity`: the weights of the blocks, and a twentieth of the others in use. D' counts the tokens that
    were read; those of a text of U tokens that is read again are worth less and less:
    D' = U (1 + r (1 - exp(-(D / U - 1) / r))).

    Sources: Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", section 3.3, for the form;
    Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", section 3.1, for repeated text. The
    numbers are our own.
    """

    floor: float
    capacity: float
    alpha: float
    data: float
    beta: float
    repeats: float

    def fresh(self, tokens: float, text_tokens: float) -> float:
        """How many tokens of new text are worth as much as `tokens` of a text that is read again and again."""
        if tokens <= text_tokens:
            return tokens
        again = tokens / text_tokens - 1
        return text_tokens * (1 + self.repeats * (1 - math.exp(-again / self.repeats)))

    @property
    def most_epochs(self) -> float:
        """After how many passes a text has given 99 % of what it can give."""
        return 1 + self.repeats * math.log(100)

    def loss(self, weights: float, tokens: float, text_tokens: float) -> float:
        """The expected validation loss."""
        fresh = self.fresh(tokens, text_tokens)
        return self.floor + self.capacity / weights**self.alpha + self.data / fresh**self.beta


RULE = LossRule(floor=3.688, capacity=41.47, alpha=0.3837, data=237.8, beta=0.4, repeats=4.0)


@dataclass(frozen=True)
class Task:
    """What there is to train on, and how long.

    Attributes:
        text_tokens: scored tokens of an epoch.
        validation_tokens, test_tokens: scored tokens of these splits.
        seconds: from the first step to the end, evaluations included.
        most_evaluations: how often the validation split is scored at the most, besides after each epoch; in a run of
            many hours once in half an hour.
        seconds_per_evaluation: besides scoring: a sample of text, and a checkpoint if it was the best.
        tokens_per_step: of an optimizer step.
        most_epochs: passes over the text that are made at the most, however much time there is.
    """

    text_tokens: int
    validation_tokens: int
    test_tokens: int
    seconds: float
    most_evaluations: int
    seconds_per_evaluation: float
    tokens_per_step: int
    most_epochs: float

    def tokens_in_time(self, tokens_per_second: float) -> float:
        """How many tokens there is time to train on: what evaluations leave of it."""
        room = self.seconds * tokens_per_second - self._around(tokens_per_second)
        return max(room, 0.0) / self._with_evaluation(tokens_per_second)

    def seconds_for(self, tokens: float, tokens_per_second: float) -> float:
        """How much time it takes to train on so many tokens, the inverse of `tokens_in_time`."""
        cost = tokens * self._with_evaluation(tokens_per_second) + self._around(tokens_per_second)
        return cost / tokens_per_second

    def evaluations(self, tokens_per_second: float) -> int:
        """How often the validation split is scored, besides after each epoch: fewer times if that takes long."""
        cost = self._evaluation(tokens_per_second)
        training = min(self.seconds, self.most_epochs * self.text_tokens / tokens_per_second)
        most = max(self.most_evaluations, int(training / _SECONDS_BETWEEN_EVALUATIONS))
        if not cost:
            return most
        affordable = int(_EVALUATION_SHARE * self.seconds * tokens_per_second / cost)
        return min(max(affordable, _LEAST_EVALUATIONS), most)

    def _around(self, tokens_per_second: float) -> float:
        """What evaluations cost that do not follow from the number of epochs, in training tokens."""
        evaluations = self.evaluations(tokens_per_second) * self._evaluation(tokens_per_second)
        return evaluations + self.test_tokens / _EVALUATION_SPEED

    def _with_evaluation(self, tokens_per_second: float) -> float:
        """What a training token costs with its share of the evaluation after the epoch."""
        return 1 + self._evaluation(tokens_per_second) / self.text_tokens

    def _evaluation(self, tokens_per_second: float) -> float:
        """What an evaluation costs, in training tokens; 0 where there is none."""
        if not self.validation_tokens:
            return 0.0
        return self.validation_tokens / _EVALUATION_SPEED + self.seconds_per_evaluation * tokens_per_second


@dataclass(frozen=True)
class Measured:
    """What was measured of a size.

    Attributes:
        parameters: weights that are trained, embeddings that no token of the text uses left out.
        tokens_per_second: in training, of all devices together.
    """

    parameters: int
    tokens_per_second: float


@dataclass(frozen=True)
class Candidate:
    """A size, and what it is expected to reach.

    Attributes:
        measured: its parameters and speed.
        tokens: that it is trained on in the time.
        epochs: passes over the text that these are.
        loss: expected validation loss, in nats per token.
    """

    size: Size
    measured: Measured
    tokens: float
    epochs: float
    loss: float


def candidates(
    sizes: Iterable[Size], measure: Callable[[Size], Measured | None], task: Callable[[], Task]
) -> list[Candidate]:
    """Measure sizes from the smallest up, until larger ones are expected to do worse.

    Args:
        sizes: from the smallest to the largest.
        measure: trains a size for a moment; `None` if this cannot be done, and then for no larger one either.
        task: what is left to do after the measuring so far, which takes time too.

    Returns:
        The sizes that were measured, in that order, with at least `MIN_STEPS` in the time; empty if none has them.
    """
    found: list[Candidate] = []
    for size in sizes:
        measured = measure(size)
        if measured is None:
            break
        now = task()
        tokens = now.tokens_in_time(measured.tokens_per_second)
        if tokens < MIN_STEPS * now.tokens_per_step:
            break
        tokens = min(tokens, now.most_epochs * now.text_tokens)
        loss = RULE.loss(size.capacity(measured.parameters), tokens, now.text_tokens)
        found.append(Candidate(size, measured, tokens, tokens / now.text_tokens, loss))
        if len(found) - 1 - found.index(best(found)) >= _BEYOND_THE_BEST:
            break
    return found


def best(found: list[Candidate]) -> Candidate:
    """The candidate with the lowest expected loss."""
    return min(found, key=lambda candidate: candidate.loss)


def decay_for(epochs: float, steps_per_epoch: float, learning_rate: float) -> float:
    """The weight decay of Muon for a text that is read so many times.

    Under a decay a weight lasts 1 / (learning rate × decay) steps. What was good where a text is read five to sixteen
    times is 50 steps for an epoch of 47, 250 for one of 581, and 250 to 500 for one of 1,183: four times the number to
    the power of 0.65. In a text that is read less than three times nothing is to be forgotten. See benchmarks/LOG.md.

    Args:
        epochs: passes over the text.
        steps_per_epoch: optimizer steps of one.
        learning_rate: peak.
    """
    if epochs < _EPOCHS_TO_REMEMBER:
        return LEAST_DECAY
    memory = max(4 * steps_per_epoch**0.65, _SHORTEST_MEMORY)
    return max(round(1 / (learning_rate * memory), 2), LEAST_DECAY)


def dropout_for(epochs: float) -> float:
    """The dropout for a text that is read so many times; see benchmarks/LOG.md."""
    return 0.0 if epochs < 8 else 0.1
