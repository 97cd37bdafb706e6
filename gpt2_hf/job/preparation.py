"""What a run needs before its first step: tokenizer, data and model, and lines that say what is going to happen.

In: the filled options. Out: what the trainer is made of, or one line about what is wrong. Nothing is written.
"""

from pathlib import Path

import torch
from transformers import IntervalStrategy, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import SaveStrategy

from ..commands.model_loading import build_model, load_model_tokenizer, tie_unused_tokens
from ..data import LoadedData, load_same_data
from ..data.samples import SequenceMode
from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.mixture import DATA_FILES
from ..planning.steps import Schedule, list_events, make_schedule, schedule_warning
from ..runtime.fallbacks import missing_for_attention, missing_for_packing, padding_to_the_longest
from ..runtime.stopwatch import duration
from ..trainer.remaining import num_samples_of
from . import sizing
from .run import Run
from .teachers import find_teachers, load_teachers


def build(run: Run, checkpoint: Path | None = None) -> tuple[PreTrainedTokenizerBase, LoadedData, GPT2HFForCausalLM]:
    """Tokenizer, data and model, in this order; the slowest last. The run gets its teachers, and with `--size auto`
    its options.

    Args:
        run: what was asked.
        checkpoint: that it is resumed from.

    Raises:
        UserError: if one of them cannot be had, or options contradict what the data are.
    """
    run.args.check_for_job()
    run.args.check_metric(run.data_args.train_mix or ())
    chooser = sizing.Chooser(run) if sizing.is_wanted(run) else None
    if chooser is not None and checkpoint is not None:
        sizing.restore(chooser, checkpoint)
    elif chooser is not None:
        sizing.settle_text(chooser)
    _check_options(run)
    tokenizer = _load_tokenizer(run)
    teachers = find_teachers(run.args.distill_from or [], tokenizer, run.model_args.max_length)
    data = _load_data(run, tokenizer)
    if chooser is not None and checkpoint is None:
        run.sizing = sizing.settle_size(chooser, tokenizer, data)
    _check_saves(run, data)
    set_seed(run.args.seed)
    model = _build_model(run, tokenizer, data)
    run.teachers = load_teachers(teachers, model, run.model_args.attn_implementation)
    return tokenizer, data, model


def _check_options(run: Run) -> None:
    """Refuse what options of text and training make of each other, before any of the text is read."""
    files = [name for name in DATA_FILES if getattr(run.data_args, name) is not None]
    if files and run.data_args.train_file is None:
        raise UserError(f"there is no training text beside --{files[0]}: give --train_file too")
    if run.data_args.test_file is not None and not run.args.do_predict:
        raise UserError("--test_file has no effect with --do_predict false; leave one of them out")
    if run.data_args.streaming:
        _check_streaming(run)
    if run.data_args.shift_blocks and run.args.train_sampling_strategy != "random":
        raise UserError(
            f"--shift_blocks has no effect with --train_sampling_strategy {run.args.train_sampling_strategy}; leave "
            "one of them out"
        )


def _load_tokenizer(run: Run) -> PreTrainedTokenizerBase:
    start = run.model_args.model_name_or_path
    if run.data_args.tokenizer_name is None and start is not None:
        return load_model_tokenizer(start)
    return load_tokenizer(run.data_args.tokenizer_name)


def _load_data(run: Run, tokenizer: PreTrainedTokenizerBase) -> LoadedData:
    with run.watch.measure("data"):
        splits = ("train", "validation", *(["test"] if run.args.do_predict else []))
        length, batch_size, seed = run.model_args.max_length, run.args.train_batch_size, run.args.order_seed
        in_config = [name for name, layer in run.given.items() if layer == "config"]
        data = load_same_data(run.data_args, tokenizer, length, splits, batch_size, seed=seed, inherited=in_config)
    if "train" not in data.samples:
        found = "; ".join(
            f"{split}: {layout}" for split, layout in data.layouts.items()
        )  # files that are not read too
        problem = "there is no training text: give --train_file, or a --dataset_name with a train split"
        raise UserError(f"{problem} ({found})" if found else problem)
    if "validation" not in data.samples:
        raise UserError("there is no validation text: give --validation_file")
    return data


def _check_saves(run: Run, data: LoadedData) -> None:
    """Refuse a run that saves the best model alone and makes no evaluation that finds one."""
    args = run.args
    if args.save_strategy != SaveStrategy.BEST or list_events(args, _schedule(run, data)).saves:
        return
    if args.metric_for_best_model is None:
        why = "--metric_for_best_model none"
    elif args.eval_strategy == IntervalStrategy.NO:
        why = "--eval_strategy no"
    else:
        why = f"--eval_delay {args.eval_delay:g}, which is longer than the run"
    raise UserError(f"--save_strategy best saves nothing with {why}; use --save_strategy steps or epoch")


def _padding_notices(backend: str, dtype: torch.dtype, head_dim: int, device_type: str, compiles: bool) -> list[str]:
    """A line where attention pads documents all the same."""
    if (why := padding_to_the_longest(backend, dtype, head_dim, device_type, compiles)) is not None:
        return [
            f"attention pads every document of a batch to the longest one: with --torch_compile, {why}; where lines "
            "differ much in length, leave --torch_compile out or use --sequence_mode blocks"
        ]
    missing = missing_for_packing(backend, dtype, head_dim, device_type)
    return [f"attention pads documents to others of about their length: {missing}"] if missing is not None else []


def _check_streaming(run: Run) -> None:
    if run.args.max_steps < 1:
        raise UserError("--streaming needs --max_steps: nobody knows how long a stream is before it has been read")
    if run.args.train_sampling_strategy != "random":
        raise UserError("--train_sampling_strategy has no effect with --streaming, which reads in order; leave it out")
    if run.model_args.tie_unused_tokens:
        raise UserError("--tie_unused_tokens needs to know all the text beforehand; leave it out with --streaming")


def _build_model(run: Run, tokenizer: PreTrainedTokenizerBase, data: LoadedData) -> GPT2HFForCausalLM:
    attention, precision = run.model_args.attn_implementation, run.args.resolved_precision
    device_type = run.args.device.type
    missing = missing_for_attention(attention, precision.name, run.model_args.dropout, device_type)
    if missing is not None:
        run.args.notices.append(f"--attn_implementation sdpa is used: {missing}; training goes on, slower")
        run.model_args.attn_implementation = "sdpa"
    model = build_model(run.model_args, tokenizer)
    if run.data_args.sequence_mode == SequenceMode.PADDING_FREE:
        backend = model.config._attn_implementation
        run.args.notices += _padding_notices(
            backend, precision.dtype, model.config.head_size, device_type, compiles=run.args.torch_compile
        )
    if run.model_args.tie_unused_tokens:
        num_tied = tie_unused_tokens(model, tokenizer, data)
        if num_tied:
            vocabulary = f"{num_tied:,} of {model.config.num_tokens:,} tokens"
            run.details.append(f"{vocabulary} are not in the training text and share one embedding")
        else:
            run.args.notices.append("--tie_unused_tokens: the training text uses every token, so none is tied")
    return model


def announce(run: Run, model: GPT2HFForCausalLM, data: LoadedData) -> None:
    """Say what is going to happen: in three lines, or with `--verbose` in full; notices always."""
    if run.sizing is not None:
        assert run.args.max_training_hours is not None
        for line in run.sizing.lines(run.args.max_training_hours):
            run.say(line)
    if run.args.verbose:
        lines = account(run, model, data)
    else:
        lines = [f"text: {data.summary()}", _describe_model(model), *_describe_teachers(run), _describe_run(run, data)]
    for line in [*lines, *run.args.notices]:
        run.say(line)
    if run.args.torch_compile:
        run.say("the model is compiled during the first step, which takes a minute or more")


def warn(run: Run, data: LoadedData) -> None:
    """Say what a plan would advise against."""
    if (warning := schedule_warning(_schedule(run, data))) is not None:
        run.say(f"warning: {warning}")


def account(run: Run, model: GPT2HFForCausalLM, data: LoadedData) -> list[str]:
    """Where every row and token of the text went, and how the steps are made of it."""
    args = run.args
    schedule = _schedule(run, data)
    epochs = "" if run.data_args.streaming else f"{schedule.steps_per_epoch:,} per epoch, "
    return [
        *data.lines,
        _describe_model(model),
        *_describe_teachers(run),
        f"device: {_describe_devices(run)}; {args.resolved_precision}",
        *run.details,
        f"batch: {args.samples_per_step:,} samples per step = {args.world_size} "
        f"{'process' if args.world_size == 1 else 'processes'} × "
        f"{args.train_batch_size} samples × {args.gradient_accumulation_steps} accumulated",
        f"steps: {epochs}{schedule.total_steps:,} in all",
    ]


def _describe_model(model: GPT2HFForCausalLM) -> str:
    config = model.config
    return (
        f"model: {model.num_parameters() / 1e6:.1f}M parameters ({config.n_layer} layers, {config.n_head} heads, "
        f"width {config.n_embd}, {config.n_positions} positions), {config._attn_implementation} attention"
    )


def _describe_teachers(run: Run) -> list[str]:
    sizes = ", ".join(f"{each.source} ({each.model.num_parameters() / 1e6:.1f}M parameters)" for each in run.teachers)
    weights = f"weight {run.args.distill_alpha:g}, temperature {run.args.distill_temperature:g}"
    return [f"teachers: {sizes}; {weights}"] if run.teachers else []


def _describe_run(run: Run, data: LoadedData) -> str:
    args, schedule = run.args, _schedule(run, data)
    epochs = "" if run.data_args.streaming else f" ({schedule.steps_per_epoch:,} per epoch)"
    hours = args.max_training_hours
    budget = "" if hours is None else f", budget {duration(hours * 3600)}"
    return (
        f"run: {schedule.total_steps:,} steps{epochs} of {args.samples_per_step:,} samples, {_describe_devices(run)}, "
        f"{args.resolved_precision}{budget}"
    )


def _describe_devices(run: Run) -> str:
    how = "sharded over " if run.args.wants_fsdp else ""
    processes = f", {how}{run.args.world_size} processes" if run.args.world_size > 1 else ""
    return f"{run.args.device}{processes}"


def _schedule(run: Run, data: LoadedData) -> Schedule:
    return make_schedule(run.args, num_samples_of(data.samples["train"]))
