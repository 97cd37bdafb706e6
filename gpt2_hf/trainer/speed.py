"""How fast a training is: tokens per second, their share of the device's peak, and memory.

In: the tokens of each step, and the time that the parts of a run take. Out: the numbers of a log.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import GPT2LMHeadModel

from ..data import Samples
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.training_arguments import GPT2HFTrainingArguments
from ..runtime.stopwatch import Stopwatch
from ..runtime.utilization import flops_per_token, peak_flops, used_memory

_ASIDE = ("evaluate", "evaluate_other", "sample", "save")  # what a run does beside its steps


class TrainingSpeed:
    """Counts trained tokens between two logs, on the device, and the time that their steps took.

    Args:
        watch: of the run.

    Attributes:
        peak: tokens per second that all devices together could train; `None` where that is not known.
    """

    peak: float | None = None

    def __init__(self, watch: Stopwatch):
        self.watch = watch
        self.reset()

    def reset(self) -> None:
        """Begin anew; the first log has no speed."""
        self._tokens: torch.Tensor | int | None = None  # nobody has counted
        self._mark: tuple[float, float] | None = None

    def add(self, tokens: torch.Tensor | int) -> None:
        """Count the tokens of a step; nothing waits for the device."""
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    def drain(self, device: torch.device, processes: int) -> dict[str, float]:
        """The numbers since the last call, evaluations and checkpoints not counted; no speed without tokens to count.

        Args:
            device: whose memory is told; its queue is waited for.
            processes: that have trained as many tokens as were counted here.
        """
        now = time.monotonic()
        aside = sum(self.watch.total.get(part, 0.0) for part in _ASIDE)
        counted, self._tokens = self._tokens, None
        previous, self._mark = self._mark, (now, aside)
        numbers = {"memory_gib": used_memory(device) / 2**30}
        seconds = now - previous[0] - (aside - previous[1]) if previous is not None else 0.0
        if seconds > 0 and counted is not None:
            tokens = float(counted) * processes
            numbers["tokens_per_second"] = tokens / seconds
            if self.peak is not None:
                numbers["mfu"] = tokens / seconds / self.peak
        return numbers


def peak_tokens_per_second(
    args: GPT2HFTrainingArguments, model: nn.Module, samples: Any, teachers: Sequence[GPT2HFForCausalLM] = ()
) -> float | None:
    """What all devices together could train at their peak; `None` where that is not known.

    Args:
        args: device, precision and number of processes.
        model: without what was put around it.
        samples: the training data; attention counts where their lengths are known.
        teachers: a forward pass of each is part of a step.
    """
    if args.device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(args.device), args.resolved_precision.name)
    if peak is None:
        return None
    context = 0.0
    if isinstance(samples, Samples):
        lengths = samples.lengths
        context = float((lengths.astype("float64") ** 2).sum() / lengths.sum())
    needed = training_flops(model, context)
    if needed is None:
        return None
    of_teachers = sum(training_flops(teacher, context) or 0.0 for teacher in teachers)
    return peak * args.world_size / (needed + of_teachers / 3)  # a forward pass is a third of a step


def training_flops(model: nn.Module, context: float) -> float | None:
    """Operations of a token's forward and backward pass; `None` for a model that is no GPT-2.

    Args:
        model: ours or transformers'.
        context: mean number of positions that a token sees.
    """
    if isinstance(model, GPT2HFForCausalLM):
        num_matmul_parameters = model.num_matmul_parameters
    elif isinstance(model, GPT2LMHeadModel):
        num_matmul_parameters = model.num_parameters(exclude_embeddings=True)
        if model.config.tie_word_embeddings:  # else the head is no embedding
            num_matmul_parameters += model.lm_head.weight.numel()
    else:
        return None
    return flops_per_token(num_matmul_parameters, model.config.n_layer, model.config.n_embd, context)
