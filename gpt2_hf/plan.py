"""What a run will be, before any hour is spent.

In: the arguments of a run, its data and model. Out: numbers, and advice that names the flag.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from .arguments import GPT2HFTrainingArguments


@dataclass(frozen=True)
class Schedule:
    """Steps of a run.

    Attributes:
        steps_per_epoch: optimizer steps in one pass over the data.
        total_steps: optimizer steps of the whole run.
        warmup_steps: of these, the steps of linear warmup.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int

    @property
    def warmup_share(self) -> float:
        """Share of the run that is warmup."""
        return self.warmup_steps / self.total_steps


def make_schedule(args: GPT2HFTrainingArguments, num_samples: int | None) -> Schedule:
    """Count steps as the Trainer does: the last, smaller batch of an epoch is a batch too.

    Without a number of samples, that is for a stream, the one epoch is `max_steps` long.
    """
    if num_samples is None:
        return Schedule(args.max_steps, args.max_steps, args.get_warmup_steps(args.max_steps))
    rows = args.train_batch_size * args.world_size
    batches = num_samples // rows if args.dataloader_drop_last else math.ceil(num_samples / rows)
    steps_per_epoch = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    return Schedule(steps_per_epoch, total, args.get_warmup_steps(total))


def schedule_warning(schedule: Schedule) -> str | None:
    """A line for a warmup that leaves too little of the run, or none of it."""
    if schedule.warmup_share < 0.5:
        return None
    return (
        f"warmup takes {schedule.warmup_steps:,} of {schedule.total_steps:,} steps ({schedule.warmup_share:.0%}), so "
        "the learning rate hardly reaches its peak; consider --warmup_steps 0.1, a tenth of the run"
    )


def checkpoint_bytes(num_parameters: int) -> int:
    """Size of a checkpoint: fp32 weights and AdamW's two moments."""
    return 3 * 4 * num_parameters


def memory_bytes(num_parameters: int) -> int:
    """Memory that a run holds whatever the batch: fp32 weights, gradients and AdamW's two moments."""
    return 4 * 4 * num_parameters


def describe(args: GPT2HFTrainingArguments, model: Any, num_samples: int, num_tokens: int) -> list[str]:
    """The plan as lines, advice last."""
    schedule = make_schedule(args, num_samples)
    num_parameters = sum(p.numel() for p in model.parameters())
    flops = 6 * model.num_parameters(exclude_embeddings=True) + 6 * model.lm_head.weight.numel()
    free_disk = shutil.disk_usage(_existing_parent(Path(str(args.output_dir)))).free
    if args.device.type == "cuda":
        free_memory = torch.cuda.get_device_properties(args.device).total_memory
    else:
        free_memory = psutil.virtual_memory().available
    lines = [
        f"parameters: {num_parameters:,}",
        f"training samples: {num_samples:,} with {num_tokens:,} scored tokens an epoch",
        f"steps: {schedule.steps_per_epoch:,} an epoch, {schedule.total_steps:,} in all, "
        f"{schedule.warmup_steps:,} of them warmup ({schedule.warmup_share:.0%})",
        f"arithmetic: {flops / 1e9:.2f} GFLOP a token (6 per parameter and token, the head included), "
        f"{flops * num_tokens / 1e12:,.1f} TFLOP an epoch",
        f"memory: {_gib(memory_bytes(num_parameters))} for weights, gradients and optimizer, before activations; "
        f"the device has {_gib(free_memory)}",
        f"disk: {_gib(checkpoint_bytes(num_parameters))} a checkpoint; {_gib(free_disk)} are free",
    ]
    if (warning := schedule_warning(schedule)) is not None:
        lines.append(f"advice: {warning}")
    if memory_bytes(num_parameters) > free_memory:
        lines.append("advice: the model does not fit; use a smaller --d_model or --num_layers")
    return lines


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
