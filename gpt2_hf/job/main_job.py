"""The main job from end to end: arguments in, a trained model and a report out.

    output folder ─► tokenizer ─► data ─► model ─► trainer ─► training ─► best model ─► results, sample, report

Everything the user may have got wrong is found before the first file is written.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.trainer_callback import TrainerState
from transformers.utils import logging as transformers_logging

from ..checkpoints import folders
from ..checkpoints.folders import RESOLVED_CONFIG_NAME, TRAINER_STATE_NAME
from ..checkpoints.run_lock import RunLock
from ..commands.generate import generate_text
from ..commands.model_loading import build_model, load_model_tokenizer
from ..commands.report import CURVES_NAME, forget_end, write_report
from ..data import LoadedData, StreamingSamples, load_data
from ..data.tokenizer import load_tokenizer
from ..errors import EXIT_OK, SaveError, UserError
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import ClusterArguments, DataArguments, ModelArguments
from ..options.training_arguments import GPT2HFTrainingArguments
from ..planning import parallel_plan
from ..planning.plan import make_plan, make_schedule, schedule_warning
from ..runtime import distributed
from ..runtime.fallbacks import missing_for_attention
from ..runtime.hub import ensure_hub_or_offline, upload_model
from ..runtime.random_state import preserved_rng
from ..runtime.stop_signals import SignalWatch
from ..runtime.stopwatch import Stopwatch
from ..trainer.callbacks import EvaluationInterruptedError
from ..trainer.gpt2_trainer import GPT2HFTrainer
from .resolved_config import resolved_config
from .resuming import check_resumable, find_checkpoint
from .run import Run

# What the job still does after training besides the test split, as a share of the time it took to start, reading the
# text not counted: both are importing, reading and writing, and a machine that is slow at one is slow at the other.
_REPORT_SHARE_OF_START = 0.75
_SAMPLE_TOKENS = 120
_PROMPT_TOKENS = 12


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: GPT2HFTrainingArguments,
    given: dict[str, str] | None = None,
    watch: Stopwatch | None = None,
    plan_for: ClusterArguments | None = None,
) -> int:
    """Run the main job.

    Args:
        model_args: the model's size, or the weights to start from.
        data_args: the text.
        args: how to train.
        given: options that were stated, and where (see `parsing.Parsed`).
        watch: stopwatch of the invocation.
        plan_for: print the plan for these devices and stop before anything is written.

    Returns:
        The exit code: 0 finished or stopped by the time budget, 75 or 130 after a signal.

    Raises:
        UserError: if the input is wrong; nothing has been written then.
        TrainingDivergedError: if a gradient became non-finite.
        SaveError: if a file could not be written.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    signals = SignalWatch()
    signals.install()
    try:
        run = Run(model_args, data_args, args, watch or Stopwatch(), signals, given or {})
        exit_code = _train(run) if plan_for is None else _plan(run, plan_for)
        distributed.leave()
        return exit_code
    finally:
        signals.restore()


def _train(run: Run) -> int:
    lock = RunLock(run.output_dir)
    try:
        # Before anything of an earlier run is read. A folder that is not there yet is only made once nothing can
        # be wrong with the input any more. All processes look before the first one makes it.
        if distributed.any_process(run.output_dir.is_dir()):
            _lock(run, lock)
            if run.args.process_index == 0:
                folders.repair(run.output_dir)
            distributed.barrier()
        return _train_locked(run, lock)
    except EvaluationInterruptedError:
        return run.signals.exit_code  # one that was being made up for; the checkpoint still remembers it
    except OSError as error:  # what no stage has expected: a disk that fails under TensorBoard or the report
        newest, _ = folders.newest_valid(run.output_dir)
        kept = f"{newest} is whole, go on with --resume_from latest" if newest else "nothing was saved"
        raise SaveError(f"the system refused a file ({error}); {kept} when that is mended") from error
    finally:
        lock.release()


def _lock(run: Run, lock: RunLock) -> None:
    if run.args.process_index != 0 or lock.is_held:
        return
    try:
        note = lock.acquire()
    except OSError as error:
        raise UserError(f"--checkpoint_dir: {run.output_dir} cannot be written to: {error.strerror}") from error
    if note is not None:
        run.say(note)


def _train_locked(run: Run, lock: RunLock) -> int:
    checkpoint = find_checkpoint(run)
    tokenizer, data, model = build(run)
    comparable = checkpoint is None or check_resumable(run, checkpoint, model, data)
    announce(run, model, data)
    _lock(run, lock)
    trainer = make_trainer(run, tokenizer, data, model)
    trainer.forget_best = not comparable
    if run.args.process_index == 0:
        if checkpoint is None and run.args.overwrite_output_dir:
            folders.delete_run(run.output_dir)
        elif checkpoint is not None and checkpoint.parent.resolve() == run.output_dir.resolve():
            for name in folders.set_aside_after(run.output_dir, folders.step_of(checkpoint)):
                run.say(f"a later checkpoint of the run is set aside as {name}")
        folders.write_json(run.output_dir / RESOLVED_CONFIG_NAME, resolved_config(run, model, data))
    distributed.barrier()
    run.signals.immediate = False
    train_metrics = _run_training(run, trainer, checkpoint)
    received = distributed.any_process(run.signals.received is not None)
    if received and trainer.state.global_step < trainer.state.max_steps:
        newest, _ = folders.newest_valid(run.output_dir)
        saved = f"go on from {newest} with --resume_from latest" if newest is not None else "nothing was saved"
        run.say(f"stopped at step {trainer.state.global_step:,}; {saved}")
        return run.signals.exit_code
    run.signals.immediate = True  # the last checkpoint is written
    finish(run, trainer, tokenizer, data, train_metrics)
    return EXIT_OK


def _plan(run: Run, cluster: ClusterArguments) -> int:
    if run.data_args.streaming:
        raise UserError("a plan counts samples, which --streaming does not; leave it out for the plan")
    tokenizer, data, model = build(run)
    announce(run, model, data)
    start = run.watch.elapsed
    run.say("probing: some real steps, then an evaluation; nothing is written")
    write_sample = sample_writer(run, tokenizer, data, run.args.sample_tokens)
    plan = make_plan(run.args, model, data, start, report_seconds(run), write_sample)
    for line in plan.lines():
        run.say(line)
    if cluster.nproc * cluster.nodes > 1:
        per_sample = plan.measured.step_seconds / run.args.samples_per_step if plan.measured else None
        for line in parallel_plan.describe(run.args, cluster, model, per_sample):
            run.say(line)
    return EXIT_OK


# ---- before anything is written ----


def build(run: Run) -> tuple[PreTrainedTokenizerBase, LoadedData, GPT2HFForCausalLM]:
    """Tokenizer, data and model, in this order; the slowest last."""
    start = run.model_args.model_name_or_path
    if run.data_args.tokenizer_name is None and start is not None:
        tokenizer = load_model_tokenizer(start)
    else:
        tokenizer = load_tokenizer(run.data_args.tokenizer_name)
    # One process tokenises and fills the cache. The others wait at its lock, however long that takes: a barrier would
    # give up after --ddp_timeout.
    with run.watch.measure("data"):
        batch_size = run.args.train_batch_size
        seed = run.args.seed if run.args.data_seed is None else run.args.data_seed
        splits = ("train", "validation", *(["test"] if run.args.do_predict else []))
        data = load_data(run.data_args, tokenizer, run.model_args.max_length, splits, batch_size=batch_size, seed=seed)
    if "train" not in data.samples:
        raise UserError("there is no training text: give --train_file, or a --dataset_name with a train split")
    if "validation" not in data.samples:
        raise UserError("there is no validation text: give --validation_file")
    if run.data_args.streaming and run.args.max_steps < 1:
        raise UserError("--streaming needs --max_steps: nobody knows how long a stream is before it has been read")
    if run.data_args.test_file is not None and not run.args.do_predict:
        raise UserError("--test_file has no effect with --do_predict false; leave one of them out")
    if run.data_args.streaming and run.args.train_sampling_strategy != "random":
        raise UserError("--train_sampling_strategy has no effect with --streaming, which reads in order; leave it out")
    if run.data_args.streaming and run.model_args.tie_unused_tokens:
        raise UserError("--tie_unused_tokens needs to know all the text beforehand; leave it out with --streaming")
    set_seed(run.args.seed)
    assert run.args.resolved_precision is not None
    attention, precision = run.model_args.attn_implementation, run.args.resolved_precision
    if (missing := missing_for_attention(attention, precision.name, run.model_args.dropout)) is not None:
        run.args.notices.append(f"--attn_implementation sdpa is used: {missing}; training goes on, slower")
        run.model_args.attn_implementation = "sdpa"
    model = build_model(run.model_args, tokenizer)
    if run.model_args.tie_unused_tokens:
        used = data.documents["train"].used_ids(model.config.num_tokens)
        num_tied = model.tie_unused_tokens(torch.tensor([*used, *tokenizer.all_special_ids]))
        run.args.notices.append(
            f"{num_tied:,} of {model.config.num_tokens:,} tokens are not in the training text and share one embedding"
            if num_tied
            else "--tie_unused_tokens: the training text uses every token, so none is tied"
        )
    return tokenizer, data, model


def announce(run: Run, model: GPT2HFForCausalLM, data: LoadedData) -> None:
    """Say what is going to happen."""
    for line in data.lines:
        run.say(line)
    config = model.config
    run.say(
        f"model: {model.num_parameters() / 1e6:.1f}M parameters ({config.n_layer} layers, {config.n_head} heads, "
        f"width {config.n_embd}, {config.n_positions} positions), {config._attn_implementation} attention"
    )
    how = "sharded over " if run.args.wants_fsdp else ""
    processes = f", {how}{run.args.world_size} processes" if run.args.world_size > 1 else ""
    run.say(f"device: {run.args.device}{processes}; {run.args.resolved_precision}")
    for notice in run.args.notices:
        run.say(notice)
    if run.args.torch_compile:
        run.say("the model is compiled during the first step, which takes a minute or more")
    if (devices := torch.cuda.device_count()) > 1 and run.args.device.type == "cuda" and run.args.world_size == 1:
        run.say(f"one of {devices} GPUs is used; all of them: torchrun --nproc_per_node {devices} run_clm.py ...")
    run.say(
        f"batch: {run.args.samples_per_step:,} samples a step = {run.args.world_size} "
        f"{'process' if run.args.world_size == 1 else 'processes'} × "
        f"{run.args.train_batch_size} samples × {run.args.gradient_accumulation_steps} accumulated"
    )
    schedule = make_schedule(run.args, num_samples(data.samples["train"]))
    epochs = "" if run.data_args.streaming else f"{schedule.steps_per_epoch:,} an epoch, "
    run.say(f"steps: {epochs}{schedule.total_steps:,} in all")
    if (warning := schedule_warning(schedule)) is not None:
        run.say(f"warning: {warning}")


def num_samples(samples: Any) -> int | None:
    """Samples of a dataset, `None` for a stream."""
    return None if isinstance(samples, StreamingSamples) else len(samples)


# ---- the run ----


def report_seconds(run: Run) -> float:
    """Estimated time of results, sample and report, asked when the run is about to start."""
    return _REPORT_SHARE_OF_START * (run.watch.elapsed - run.watch.total.get("data", 0.0))


def make_trainer(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    data: LoadedData,
    model: GPT2HFForCausalLM,
) -> GPT2HFTrainer:
    """The trainer of the job, with the time that the rest of the job will need."""
    seconds = report_seconds(run)

    def closing_seconds() -> float:
        return seconds + trainer.generation_seconds(_SAMPLE_TOKENS)

    if run.args.push_to_hub and not ensure_hub_or_offline():
        raise UserError(
            "--push_to_hub: the hub cannot be reached; leave it out and publish afterwards: hf upload USER/NAME "
            f"{run.output_dir / folders.BEST_MODEL}"
        )
    try:
        trainer = GPT2HFTrainer(
            model,
            run.args,
            data_collator=data.collator,
            train_dataset=data.samples["train"],
            eval_dataset=data.samples["validation"],
            processing_class=tokenizer,
            watch=run.watch,
            signals=run.signals,
            run_files={RESOLVED_CONFIG_NAME: run.output_dir / RESOLVED_CONFIG_NAME},
            closing_seconds=closing_seconds,
            test_dataset=data.samples.get("test"),
            write_sample=sample_writer(run, tokenizer, data, run.args.sample_tokens),
        )
    except (RuntimeError, ImportError, ValueError, OSError) as error:
        # What transformers refuses only now: a reporter that is not installed, a hub that does not answer.
        raise UserError(" ".join(str(error).split())) from error
    return trainer


def _run_training(run: Run, trainer: GPT2HFTrainer, checkpoint: Path | None) -> dict[str, Any]:
    """Train, unless the checkpoint is already at the end."""
    schedule = make_schedule(run.args, num_samples(trainer.train_dataset))
    if checkpoint is not None and folders.step_of(checkpoint) >= schedule.total_steps:
        run.say(f"{checkpoint} is already at step {schedule.total_steps:,}, the last one; nothing is left to train")
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        trainer.complete_publication(str(checkpoint))
        return {}
    if run.args.process_index == 0:
        forget_end(run.output_dir)
    output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    if trainer.time_budget.expired:
        run.say(f"time budget of {run.args.max_training_hours:g} h reached at step {trainer.state.global_step:,}")
        if trainer.time_budget.skipped_evaluation:
            run.say("no time was left for an evaluation; --resume_from latest goes on, or use: gpt2_hf evaluate")
    return {
        **output.metrics,
        "train_steps": trainer.state.global_step,
        "train_hours": trainer.time_budget.total_seconds / 3600,
    }


# ---- afterwards ----


def finish(
    run: Run,
    trainer: GPT2HFTrainer,
    tokenizer: PreTrainedTokenizerBase,
    data: LoadedData,
    train_metrics: dict[str, Any],
) -> None:
    """Score the best model, write results and report, and show a sample."""
    trainer.save_state()
    if train_metrics:
        trainer.save_metrics("train", train_metrics)
    saved = saved_model(run.output_dir)
    if saved is not None:
        trainer.load_weights(saved)
    eval_metrics = best_eval_metrics(trainer.state)
    if eval_metrics:
        trainer.save_metrics("eval", eval_metrics)
    test_metrics = _score_test(run, trainer)
    sample = _final_sample(run, trainer, tokenizer, data) if run.args.process_index == 0 else ""
    if run.args.process_index == 0:
        write_report(run.output_dir, sample)
    say_results(run, eval_metrics, test_metrics, sample)
    if run.args.push_to_hub and run.args.process_index == 0 and saved is not None:
        run.say(f"uploading {saved} to {trainer.hub_model_id}")
        token, revision = run.args.hub_token, run.args.hub_revision
        run.say(f"uploaded: {upload_model(saved, str(trainer.hub_model_id), token, revision)}")


def saved_model(output_dir: Path) -> Path | None:
    """The best model of a run; its last checkpoint where nothing was evaluated; `None` where nothing was saved."""
    best = output_dir / folders.BEST_MODEL
    if best.is_dir():
        return best
    newest, _ = folders.newest_valid(output_dir)
    return newest


def best_eval_metrics(state: TrainerState) -> dict[str, Any]:
    """The validation metrics of the best model, as they were measured when it was saved."""
    entries = [entry for entry in state.log_history if "eval_loss" in entry]
    of_best = [entry for entry in entries if entry["step"] == state.best_global_step]
    chosen = (of_best or entries)[-1:]
    return {
        name: value for entry in chosen for name, value in entry.items() if name.startswith("eval_") or name == "step"
    }


def _score_test(run: Run, trainer: GPT2HFTrainer) -> dict[str, float]:
    if trainer.test_dataset is None:
        return {}
    hours = run.args.max_training_hours
    if hours is not None:
        needed = trainer.evaluation_seconds(trainer.test_dataset) + trainer.closing_seconds()
        if math.isinf(needed) and not trainer.time_budget.expired:
            needed = 0.0  # a run of a step or two that never evaluated
        if distributed.any_process(run.watch.elapsed + needed > hours * 3600):
            model = saved_model(run.output_dir)
            hint = f"; score it with: gpt2-hf evaluate --model_path {model}" if model is not None else ""
            run.say(f"no time is left for the test split{hint}")
            return {}
    metrics = trainer.evaluate(trainer.test_dataset, metric_key_prefix="test")
    trainer.save_metrics("test", metrics)
    return metrics


def sample_writer(
    run: Run, tokenizer: PreTrainedTokenizerBase, data: LoadedData, num_tokens: int
) -> Callable[[GPT2HFForCausalLM], str] | None:
    """A function that lets a model continue the first words of the validation text; `None` for 0 tokens."""
    if num_tokens == 0:
        return None

    def write(model: GPT2HFForCausalLM) -> str:
        positions = model.config.n_positions
        ids = data.samples["validation"][0]["input_ids"]
        prompt = tokenizer.decode(ids[: min(_PROMPT_TOKENS, positions // 2)])
        # cut within a character, a text can have more tokens than it was made of
        room = positions - len(tokenizer(prompt, add_special_tokens=False).input_ids)
        dtype = run.args.resolved_precision.dtype if run.args.resolved_precision is not None else torch.float32
        flash = "flash" in model.config._attn_implementation  # which computes in 16 bits alone
        with torch.autocast(model.device.type, dtype=dtype, enabled=flash and dtype != torch.float32):
            return generate_text(model, tokenizer, prompt, max_new_tokens=min(num_tokens, room), seed=run.args.seed)[0]

    return write


def _final_sample(run: Run, trainer: GPT2HFTrainer, tokenizer: PreTrainedTokenizerBase, data: LoadedData) -> str:
    write = sample_writer(run, tokenizer, data, _SAMPLE_TOKENS)
    assert write is not None
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled:
        # a sharded model runs on all processes at once, and only this one has something to say
        saved = saved_model(run.output_dir)
        if saved is None:
            return ""
        model = GPT2HFForCausalLM.from_pretrained(saved).to(trainer.args.device)
    with preserved_rng(trainer.args.device):
        return write(model)


def say_results(run: Run, eval_metrics: dict[str, Any], test_metrics: dict[str, float], sample: str) -> None:
    """The end of the job as a person reads it."""
    if eval_metrics:
        run.say(
            f"best model: step {eval_metrics['step']:,}, validation loss {eval_metrics['eval_loss']:.4f}, "
            f"perplexity {eval_metrics['eval_perplexity']:.2f}"
        )
    if test_metrics:
        run.say(f"test loss {test_metrics['test_loss']:.4f}, perplexity {test_metrics['test_perplexity']:.2f}")
    if sample:
        run.say(f"\n--- a sample of the model ---\n{sample.strip()}\n---\n")
    model = saved_model(run.output_dir)
    run.say(f"results: {run.output_dir}  (model: {model or 'not saved'}, curves: {run.output_dir / CURVES_NAME})")
    if model is not None:
        run.say(f'next: gpt2-hf generate --model_path {model} --prompt "..."')
    run.say(f"      tensorboard --logdir {run.output_dir / 'runs'}")
