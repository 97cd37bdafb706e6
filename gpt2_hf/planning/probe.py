"""What a run costs, measured before it: a few real steps on its own batches, an evaluation, a write to its disk.

In: the arguments, model and data of a run. Out: a `Measurement`.

The steps are those of the trainer, on batches of the first epoch that stand for all sizes, the largest among them:
most tokens, most pairs of tokens that attention compares, most work. Which of these needs most memory depends on the
device, the precision, the dropout and the attention backend.
Nothing is left behind: the trainer gets a temporary folder, and the file that times the disk has no name.
"""

import copy
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data import LoadedData, PaddingCollator, Samples, train_sampler
from ..data.sampling import FILLER
from ..errors import UserError
from ..model.chunked_loss import default_rows_per_chunk
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.training_arguments import GPT2HFTrainingArguments
from ..runtime.distributed import any_process, largest_of_each
from ..runtime.fallbacks import padding_to_the_longest
from ..runtime.own_process import own_process, suit_changing_shapes
from ..runtime.utilization import held_memory, used_memory
from ..trainer.callbacks import ProgressCallback
from ..trainer.gpt2_trainer import GPT2HFTrainer
from ..trainer.weight_average import average_bytes

# The first step creates the optimizer's state and fills caches. Those on the largest batches are not timed either.
# Then as many as fit into the seconds.
_FIRST_STEPS = 1
_MIN_STEPS, _MAX_STEPS, _SECONDS = 4, 24, 10.0
_EVALUATION_SECONDS = 4.0
_DISK_BYTES = 64 * 2**20
# Beside weights and optimizer a checkpoint holds the tokenizer and the model's source.
_SMALL_FILES_BYTES = 5 * 2**20


@dataclass(frozen=True)
class Measurement:
    """What was measured; times in seconds, sizes in bytes, all of one process.

    Attributes:
        step_seconds: an optimizer step on a batch of average size, its data included.
        num_steps: number of steps that were timed.
        tokens_per_second: scored tokens, of one device.
        share_of_peak: of the device's arithmetic; `None` where its peak is not known.
        evaluation_seconds: the validation split.
        test_seconds: the test split; 0 where there is none.
        sample_seconds: a text sample; 0 without them.
        peak_bytes: the most memory held in training and evaluation, on the largest batches of both.
    """

    step_seconds: float
    num_steps: int
    tokens_per_second: float
    share_of_peak: float | None
    evaluation_seconds: float
    test_seconds: float
    sample_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Batches:
    """The batches of all devices in the first epoch.

    Attributes:
        rows: sample indices of each batch.
        positions: tokens of each batch that the model computes, padding included.
        pairs: of positions that see each other or lie in one row, the squares of the rows' lengths.
        pairs_per_position: how many pairs are as much arithmetic as a position.
    """

    rows: Sequence[np.ndarray]
    positions: np.ndarray
    pairs: np.ndarray
    pairs_per_position: float

    @property
    def work(self) -> np.ndarray:
        """What each batch costs, in positions: in attention one long document costs more than many short ones."""
        return self.positions + self.pairs / self.pairs_per_position

    @property
    def largest(self) -> int:
        """Index of the batch that costs most."""
        return int(self.work.argmax())

    @property
    def extremes(self) -> list[int]:
        """The batches with the most work, positions and pairs, each once: one of them needs the most memory.

        How many bytes a position takes, and how many a pair, differs from backend to backend.
        """
        return list(dict.fromkeys([self.largest, int(self.positions.argmax()), int(self.pairs.argmax())]))


def first_epoch(args: GPT2HFTrainingArguments, samples: Samples, collator: Any, model: GPT2HFForCausalLM) -> Batches:
    """The batches as the trainer will draw them, none of them read."""
    order, size = train_sampler(args, samples).order(), args.train_batch_size
    return _batches(order, size, samples, collator, model, args, completed=len(order) > size)


def _batches(
    order: np.ndarray,
    batch_size: int,
    samples: Samples,
    collator: Any,
    model: GPT2HFForCausalLM,
    args: GPT2HFTrainingArguments,
    *,
    completed: bool = False,
) -> Batches:
    """Samples in an order, so many at a time; the last batch may be completed by `FILLER`."""
    starts = np.arange(0, len(order), batch_size)
    lengths, sizes = samples.lengths_of(order).astype(np.int64), np.diff(np.append(starts, len(order)))
    longest = np.maximum.reduceat(lengths, starts)
    positions, pairs = np.add.reduceat(lengths, starts), np.add.reduceat(lengths**2, starts)
    pads = isinstance(collator, PaddingCollator)
    if pads:
        if collator.pad_to_length:
            longest = np.full_like(longest, collator.pad_to_length)
        if completed:  # fillers are padded too
            sizes = np.full_like(sizes, batch_size)
        positions = longest * sizes
    if pads or _pads_to_the_longest(args, model):
        pairs = longest**2 * sizes
    # 2 operations a parameter, of which the embeddings have none; 4 C in each layer for a pair's score and value
    of_pair = 2 * model.config.n_layer * model.config.n_embd
    return Batches(np.split(order, starts[1:]), positions, pairs, model.num_matmul_parameters / of_pair)


def _pads_to_the_longest(args: GPT2HFTrainingArguments, model: GPT2HFForCausalLM) -> bool:
    """Whether attention pads the documents of a flattened row."""
    config, dtype = model.config, args.resolved_precision.dtype
    kind = (config._attn_implementation, dtype, config.head_size, args.device.type)
    return padding_to_the_longest(*kind, compiles=args.torch_compile) is not None


# ---- memory ----


def cost_of_teachers(args: GPT2HFTrainingArguments, trainer: GPT2HFTrainer) -> tuple[int, float]:
    """Memory of the models that are learned from, in bytes, and their operations for a token; 0 without any."""
    if trainer.distillation is None:
        return 0, 0.0
    return trainer.distillation.cost(trainer.plain_model, args.resolved_precision.dtype)


def activation_bytes(trainer: GPT2HFTrainer, samples: Samples, batches: Batches) -> int:
    """The most that a forward pass on a batch keeps for the backward pass, from one and two samples.

    Every tensor that autograd saves is counted, so the figure follows the model's dropout, precision, attention
    backend and activation checkpointing. It is a constant (the head's gradient, weights cast down), a part that grows
    with the positions, and one that grows with the pairs that see each other, such as dropout's masks.
    """
    rows = batches.rows[int(batches.pairs.argmax())]
    longest = samples[int(rows[samples.lengths_of(rows).argmax()])]
    padded = getattr(trainer.data_collator, "pad_to_length", None)
    length = padded or len(longest["input_ids"]) - 1
    short = 0 if padded else length // 2  # no half where rows are padded to one length, or all have one target
    half = {**longest, "input_ids": longest["input_ids"][: short + 1]}
    batches_tried = [[longest], [longest, longest], *([[half]] if short else [])]
    model, place = trainer.model, next(trainer.model.parameters()).device
    try:
        model.to(trainer.args.device)  # FSDP leaves it on the CPU until training begins
        one, two, *halved = (_saved_bytes(trainer, batch) for batch in batches_tried)
    finally:
        model.to(place)
    constant, of_one = 2 * one - two, two - one
    of_pair = 0.0
    if halved:  # a L + b L² for the whole one, a l + b l² for its half
        of_pair = max((of_one / length - (halved[0] - constant) / short) / (length - short), 0.0)
    of_position = of_one / length - of_pair * length
    return round(float((constant + of_position * batches.positions + of_pair * batches.pairs).max()))


def _saved_bytes(trainer: GPT2HFTrainer, samples: list[dict[str, Any]]) -> int:
    """Bytes of all tensors that a forward pass saves, those of the parameters left out."""
    model = trainer.model
    of_parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in of_parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = trainer._prepare_inputs(trainer.data_collator(samples))
    model.train()
    with trainer.accelerator.autocast(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = trainer.compute_loss(model, inputs)
    del loss
    return sum(saved.values())


def least_peak_bytes(
    args: GPT2HFTrainingArguments, held: int, num_parameters: int, kept_bytes: int, activations: int
) -> int:
    """The least that training can need: what the process holds, optimizer, and activations or gradients.

    Args:
        args: of the run.
        held: bytes that the process held before anything was tried, the weights among them.
        num_parameters: of the model.
        kept_bytes: the optimizer's state, and a moving average.
        activations: bytes that a forward pass keeps.
    """
    weights = 4 * num_parameters
    gradients = weights if args.gradient_accumulation_steps > 1 else 0
    return held + kept_bytes + max(activations + gradients, weights)


def generous_peak_bytes(args: GPT2HFTrainingArguments, model: GPT2HFForCausalLM, batches: Batches) -> int:
    """More than training can need: plain fp32 attention with dropout, and half as much again of all else."""
    config = model.config
    numbers_per_layer = 50 * config.n_embd + 4 * config.n_head * config.n_positions
    activations = 4 * int(batches.positions.max()) * config.n_layer * numbers_per_layer
    rows = default_rows_per_chunk(args.device.type, args.resolved_precision.dtype)
    head = 4 * config.vocab_size * (3 * config.n_embd + 3 * rows)  # gradients, and three chunks of logits
    weights = 5 * 4 * model.num_parameters() + average_bytes(args.ema_decay, model.num_parameters())
    return held_memory(args.device) + weights + activations + head + 2**30


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Yields a list whose only entry is the most memory held inside; on a CPU looked at every 2 ms."""
    peak = [used_memory(device)]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device)
        return
    done = threading.Event()
    process = own_process()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


# ---- time ----


class _StepTimes(TrainerCallback):
    """Times each step after so many, and stops when there are enough."""

    def __init__(self, untimed: int) -> None:
        self.untimed = untimed
        self.batches: list[float] = []  # reading the batches, forward and backward
        self.optimizer: list[float] = []
        self._end = self._began = self._gradients = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self.untimed:
            self._began = _now(args.device)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._gradients = _now(args.device)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        now = _now(args.device)
        if state.global_step > self.untimed:
            self.batches.append(self._gradients - self._end)
            self.optimizer.append(now - self._gradients)
            enough = now - self._began > _SECONDS and len(self.batches) >= _MIN_STEPS
            control.should_training_stop |= any_process(enough)
            now = _now(args.device)
        self._end = now


def _now(device: torch.device) -> float:
    """The time when the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.monotonic()


def make_probe_trainer(
    args: GPT2HFTrainingArguments,
    model: GPT2HFForCausalLM,
    data: LoadedData,
    output_dir: str,
    teachers: Sequence[GPT2HFForCausalLM] = (),
) -> GPT2HFTrainer:
    """The run's trainer, but it writes nothing where the run will, uploads nothing, and only trains."""
    probe_args = copy.copy(args)
    probe_args.output_dir = output_dir
    probe_args.distill_from = None  # they are given
    probe_args.overwrite_output_dir = probe_args.verbose = False  # which are the job's
    probe_args.sample_tokens = 0
    probe_args.report_to, probe_args.notices, probe_args.stated = [], [], []
    probe_args.precision = args.resolved_precision.name  # chosen, and said, already
    probe_args.eval_strategy = probe_args.save_strategy = probe_args.logging_strategy = "no"
    probe_args.early_stopping_patience = None
    probe_args.eval_on_start = probe_args.push_to_hub = False
    probe_args.max_training_hours = None
    probe_args.schedule_by_time = False
    probe_args.train_sampling_strategy = "sequential"
    probe_args.gradient_accumulation_steps = min(args.gradient_accumulation_steps, 2)  # a second one adds to gradients
    probe_args.per_device_train_batch_size = min(args.per_device_train_batch_size, len(data.samples["train"]))
    probe_args.disable_tqdm = True
    samples = data.samples
    trainer = GPT2HFTrainer(
        model, probe_args, data.collator, samples["train"], samples["validation"], teachers=teachers
    )
    trainer.remove_callback(ProgressCallback)
    if args.gradient_checkpointing:
        of_torch = dict(args.gradient_checkpointing_kwargs or {})
        own = {name: of_torch.pop(name) for name in ("every_n_layers", "offload") if name in of_torch}
        # the second is its name in older releases of transformers
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable(of_torch or None, **own)
    return trainer


def measure(
    args: GPT2HFTrainingArguments,
    trainer: GPT2HFTrainer,
    data: LoadedData,
    batches: Batches,
    write_sample: Callable[[GPT2HFForCausalLM], str] | None,
) -> Measurement:
    """Train, evaluate and sample for some seconds.

    Raises:
        Exception: one that `is_out_of_memory` knows, if the device is too small for the largest batch.
    """
    accumulation = trainer.args.gradient_accumulation_steps
    chosen = _choose(batches, accumulation)
    size = trainer.args.train_batch_size
    # Each process gets every batch: batches are dealt out in turn.
    dealt = [batch for batch in chosen for _ in range(args.world_size)]
    rows = [number for batch in dealt for number in completed_by_fillers(batches.rows[batch], size)]
    untimed = _FIRST_STEPS + len(batches.extremes)
    trainer.args.max_steps = untimed + _MAX_STEPS
    # the schedule of the run may not be one for so few steps
    trainer.args.lr_scheduler_type, trainer.args.lr_scheduler_kwargs = "constant_with_warmup", None
    train_samples = data.samples["train"]
    trainer.train_dataset = Subset(train_samples, rows)
    times = _StepTimes(untimed)
    trainer.add_callback(times)
    with _peak_memory(args.device) as peak:
        trainer.train()
        for split in ("validation", "test"):
            if split in data.samples:
                _evaluate_largest(trainer, data.samples[split])
        validation = _evaluation_seconds(trainer, data.samples["validation"], times)
    sampling = 0.0
    if write_sample is not None:
        begin = _now(args.device)
        write_sample(trainer.accelerator.unwrap_model(trainer.model))
        sampling = _now(args.device) - begin
    work = batches.work[chosen].reshape(-1, accumulation).sum(axis=1)[untimed:]
    batch_seconds = statistics.median(t / n for t, n in zip(times.batches, work, strict=False))
    batch_seconds *= float(batches.work.mean())
    step_seconds = args.gradient_accumulation_steps * batch_seconds + statistics.median(times.optimizer)
    mean_tokens = float(train_samples.epoch_lengths.sum(dtype=np.int64)) / len(batches.rows)
    tokens_per_second = args.gradient_accumulation_steps * mean_tokens / step_seconds
    peak_speed = trainer.speed.peak  # of the whole text; the trainer's is a part of it now
    test = data.samples.get("test")
    return Measurement(
        step_seconds=step_seconds,
        num_steps=len(times.batches),
        tokens_per_second=tokens_per_second,
        share_of_peak=tokens_per_second * args.world_size / peak_speed if peak_speed is not None else None,
        evaluation_seconds=validation * float(data.samples["validation"].lengths.sum()),
        test_seconds=validation * float(test.lengths.sum()) if test is not None else 0.0,
        sample_seconds=sampling,
        peak_bytes=peak[0],
    )


def quick_step_seconds(
    args: GPT2HFTrainingArguments,
    model: GPT2HFForCausalLM,
    data: LoadedData,
    most_steps: int,
    seconds: float,
    check: Callable[[GPT2HFTrainer], None],
) -> float:
    """Seconds of an optimizer step of this process alone, of a few on samples from all over the text.

    Args:
        args: how to train.
        model: is trained, and no longer what it was.
        data: of the run.
        most_steps: to time at the most, after two that are not timed.
        seconds: after which no further one is timed.
        check: refuses what cannot be trained with.

    Raises:
        Exception: one that `is_out_of_memory` knows, if the device is too small.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_probe_trainer(args, model, data, folder)
        check(trainer)
        model.to(args.device)  # FSDP leaves it on the CPU until training begins
        optimizer = trainer.create_optimizer()
        samples, rows = data.samples["train"], trainer.args.train_batch_size
        chosen = np.linspace(0, len(samples) - 1, rows * (2 + most_steps)).round().astype(int).reshape(-1, rows)
        times: list[float] = []
        with suit_changing_shapes(args.device.type, trainer.shapes_change):
            for batch in chosen:
                start = _now(args.device)
                inputs = trainer._prepare_inputs(trainer.data_collator([samples[int(row)] for row in batch]))
                trainer.model.train()
                with trainer.accelerator.autocast():
                    loss = trainer.compute_loss(trainer.model, inputs)
                loss.backward()
                batch_end = _now(args.device)
                optimizer.step()
                optimizer.zero_grad()
                end = _now(args.device)
                times.append((batch_end - start) * args.gradient_accumulation_steps + end - batch_end)
                if sum(times[2:]) > seconds:
                    break
    return statistics.median(times[2:])


def completed_by_fillers(rows: np.ndarray, batch_size: int) -> list[int]:
    """A batch as the run draws it: the last one of an epoch may have fewer samples."""
    return [*rows.tolist(), *[FILLER] * (batch_size - len(rows))]


def _choose(batches: Batches, accumulation: int) -> list[int]:
    """The batches of all steps, `accumulation` for each: a first step, the largest batches, and what is timed."""
    chosen = _representative(batches, (_FIRST_STEPS + _MAX_STEPS) * accumulation)
    # Only from the second step on is all there: the first one comes before the optimizer's state.
    first = _FIRST_STEPS * accumulation
    largest = [batch for batch in batches.extremes for _ in range(accumulation)]
    return [*chosen[:first], *largest, *chosen[first:]]


def _representative(batches: Batches, count: int) -> list[int]:
    """`count` whole batches of evenly spaced sizes, in an order that has no trend."""
    whole = [i for i, rows in enumerate(batches.rows) if len(rows) == len(batches.rows[0])]
    by_size = sorted(whole, key=lambda i: float(batches.work[i]))
    places = (np.arange(count) + 0.5) / count * len(by_size)
    order = np.random.Generator(np.random.Philox(key=0)).permutation(count)
    return [by_size[int(places[i])] for i in order]


def _evaluate_largest(trainer: GPT2HFTrainer, samples: Samples) -> None:
    """Score the batches of a split that take the most memory."""
    model, collator = trainer.accelerator.unwrap_model(trainer.model), trainer.data_collator
    batch_size = trainer.args.per_device_eval_batch_size
    batches = _batches(np.arange(len(samples)), batch_size, samples, collator, model, trainer.args)
    for batch in batches.extremes:
        trainer.evaluate(Subset(samples, batches.rows[batch].tolist()))


def _evaluation_seconds(trainer: GPT2HFTrainer, samples: Samples, times: _StepTimes) -> float:
    """Seconds that all processes together take to evaluate a token, from samples all over the split."""
    batch_seconds = statistics.median(times.batches) / trainer.args.gradient_accumulation_steps
    batch = trainer.args.per_device_eval_batch_size
    seconds_per_sample = batch_seconds / 3 / trainer.args.per_device_train_batch_size
    # the same on all processes, each of which has another speed
    count = int(largest_of_each(max(2 * batch, round(_EVALUATION_SECONDS / seconds_per_sample)))[0])
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)).tolist()
    begin = _now(trainer.args.device)
    trainer.evaluate(Subset(samples, chosen))
    return (_now(trainer.args.device) - begin) / float(samples.lengths[chosen].sum())


# ---- the disk ----


def checkpoint_bytes(num_parameters: int, kept_bytes: int) -> int:
    """Size of a checkpoint: fp32 weights, the optimizer's state and a moving average, and some small files."""
    return 4 * num_parameters + kept_bytes + _SMALL_FILES_BYTES


def save_seconds(folder: Path, num_bytes: int) -> float:
    """Time to write a checkpoint into a folder: bytes to the disk, synced, and read again for the manifest.

    Raises:
        UserError: if the folder cannot be written to.
    """
    content = os.urandom(min(num_bytes, _DISK_BYTES))
    begin = time.monotonic()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise UserError(f"--checkpoint_dir: {folder} cannot be written to: {error.strerror}") from error
    return (time.monotonic() - begin) * num_bytes / len(content)
