"""The main job from end to end: options in, a trained model and a report out.

    lock ─► checkpoint ─► tokenizer, data, model ─► trainer ─► training ─► best model, scores, sample, report

`train` reads from top to bottom. What may be wrong with the input is found before the first file is written.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import SaveStrategy

from ..checkpoints import folders, written
from ..checkpoints.event_files import delete_events, gather_events
from ..checkpoints.folders import RESOLVED_CONFIG_NAME, TRAINER_STATE_NAME
from ..checkpoints.ownership import refuse_foreign
from ..checkpoints.run_lock import RunLock
from ..checkpoints.written import TRAIN_RESULTS_NAME
from ..commands.report import delete_results
from ..data import LoadedData
from ..errors import EXIT_OK, FolderLostError, UserError, in_one_line
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import DataArguments, ModelArguments
from ..options.parsing import PROVENANCE_KEY
from ..options.secrets import without_secrets
from ..options.training_arguments import GPT2HFTrainingArguments
from ..planning.steps import make_schedule
from ..runtime import distributed
from ..runtime.command_lines import as_typed
from ..runtime.files import read_object
from ..runtime.hub import ensure_hub_or_offline
from ..runtime.standard_streams import lasting_streams
from ..runtime.stop_signals import SignalWatch
from ..runtime.stopwatch import Stopwatch
from ..runtime.utilization import is_out_of_memory
from ..trainer.callbacks import EvaluationInterruptedError, TimeBudgetCallback, is_out_of_patience
from ..trainer.exact_evaluation import owes_evaluation
from ..trainer.gpt2_trainer import GPT2HFTrainer
from ..trainer.job_context import JobContext
from ..trainer.remaining import num_samples_of
from .check import begin_reports, check_training
from .preparation import announce, build, warn
from .resolved_config import resolved_config
from .results import closing_seconds, finish, sample_writer
from .resuming import (
    check_resumable,
    check_shared,
    find_checkpoint,
    refuse_deleting_sources,
    refuse_present_run,
)
from .run import Run, surroundings


def train(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: GPT2HFTrainingArguments,
    given: dict[str, str] | None = None,
    watch: Stopwatch | None = None,
    signals: SignalWatch | None = None,
) -> int:
    """Run the main job.

    Args:
        model_args: the model's size, or the weights to start from.
        data_args: the text.
        args: how to train.
        given: options that were stated, and where (see `parsing.Parsed`).
        watch: stopwatch of the invocation, whose start `max_training_hours` counts from; this call when left out.
        signals: watch for signals, which may have begun before; when left out a new one, of which a second Ctrl-C
            raises `KeyboardInterrupt`.

    Returns:
        The exit code: 0 finished or stopped by the time budget, 75 or 130 after a signal.

    Raises:
        UserError: if the input is wrong; nothing has been written then.
        TrainingDivergedError: if a gradient became non-finite.
        SaveError: if a file could not be written.
        SystemExit: with 75 or 130, after a signal before the first step.
    """
    watch, signals = watch or Stopwatch(age_at_start=0.0), signals or SignalWatch(ends_process=False)
    run = Run(model_args, data_args, args, watch, signals, given or {})
    with lasting_streams(), surroundings(run), RunLock(run.output_dir) as lock:
        distributed.set_timeout(distributed.PATIENCE_SECONDS)
        # What a living run is writing just now may look like somebody else's.
        distributed.decided_by_first(lock.check_free)
        deleting = run.args.overwrite_output_dir
        distributed.decided_by_first(lambda: refuse_foreign(run.output_dir, deleting, run.name))
        distributed.decided_by_first(lambda: refuse_deleting_sources(run))
        distributed.decided_by_first(lambda: refuse_present_run(run))  # before the lock, which is not to be taken then
        # The lock comes before anything of an earlier run is read. A folder that is not there yet is only made once
        # nothing can be wrong with the input any more. Only the first process looks: NFS would go on telling another
        # host that nothing is there, after it was made.
        was_there = distributed.decided_by_first(run.output_dir.is_dir)
        if was_there:
            take_folder(run, lock)
            if run.is_first_process:
                folders.repair(run.output_dir)
            distributed.barrier()
        checkpoint = find_checkpoint(run)

        tokenizer, data, model = build(run, checkpoint)
        best_is_comparable = checkpoint is None or check_resumable(run, checkpoint, model, data)
        announce(run, model, data)
        warn(run, data)
        with leaving_no_folder(run.output_dir):
            trainer = make_trainer(run, tokenizer, data, model, best_is_comparable, lock)
            check_training(run, trainer)
            begin_reports(run, trainer)
        take_folder(run, lock)
        if not was_there:
            refuse_newcomer(run)
        check_shared(run, lock.path)
        ended = why_ended(run, trainer, checkpoint)
        if ended is not None:
            trainer.job.best_is_comparable = True  # with nothing that follows
        elif not best_is_comparable:
            run.say("best-model tracking restarts: earlier evaluations are not comparable")
        if run.is_first_process:
            clear_folder(run, checkpoint)
            record = resolved_config(run, model, data)
            if checkpoint is not None and ended is not None:
                record = record_of(checkpoint, record)
            written.write_json(run.output_dir, RESOLVED_CONFIG_NAME, record)
        run.args.run_name = run.name  # for trackers, which read it again when the test split is scored
        distributed.barrier()

        run.signals.immediate = ended is None  # until training begins
        distributed.set_timeout(run.args.ddp_timeout)
        try:
            train_metrics = run_training(run, trainer, checkpoint, ended)
        except BaseException:
            if checkpoint is None and trainer.state.global_step == 0 and not lock.lost:
                trainer.close_reports()
                delete_run(run)  # no step was made: the corrected command finds an empty folder
            raise
        distributed.set_timeout(distributed.PATIENCE_SECONDS)
        if train_metrics is None:
            return run.signals.exit_code
        run.signals.immediate = True  # the last checkpoint is written
        if stopped_by_signal(run, trainer):  # while nothing was left to train
            return run.signals.exit_code
        if distributed.any_process(lock.lost):
            raise FolderLostError(run.output_dir)
        finish(run, trainer, tokenizer, data, train_metrics)
        return EXIT_OK


@contextlib.contextmanager
def leaving_no_folder(path: Path) -> Iterator[None]:
    """The first process makes a folder. If something is wrong, it removes it again, and those above that it made."""
    missing: list[Path] = []

    def make() -> None:
        missing.extend(folder for folder in (path, *path.parents) if not folder.exists())
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--checkpoint_dir: {path} cannot be made ({error.strerror}); choose another") from error

    try:
        distributed.decided_by_first(make)
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # somebody has put something in it
                folder.rmdir()
        raise


def take_folder(run: Run, lock: RunLock) -> None:
    """Keep other runs out of the output folder; the first process does, unless it has already."""
    if not run.is_first_process or lock.is_held:
        return
    try:
        note = lock.acquire()
    except OSError as error:
        raise UserError(f"--checkpoint_dir: {run.output_dir} cannot be written to: {error.strerror}") from error
    if note is not None:
        run.say(note)


def refuse_newcomer(run: Run) -> None:
    """Refuse a folder that was not there when it was looked at, and holds a run now.

    Raises:
        UserError: on all processes.
    """

    def look() -> None:
        if folders.holds_run(run.output_dir) and not run.args.overwrite_output_dir:
            raise UserError(
                f"--checkpoint_dir: another run began in {run.output_dir} while this one was prepared, and is over; "
                "go on with it by --resume_from latest, or choose another folder"
            )

    distributed.decided_by_first(look)


def clear_folder(run: Run, checkpoint: Path | None) -> None:
    """Remove what an overwritten run left, or set aside what came after the checkpoint that is resumed from."""
    if checkpoint is None and run.args.overwrite_output_dir:
        delete_run(run)
    elif checkpoint is not None and checkpoint.parent.resolve() == run.output_dir.resolve():
        # where it was set aside itself, the checkpoint of its step is of another branch
        step = state_in(checkpoint).global_step - (folders.step_of(checkpoint) < 0)
        for name in folders.set_aside_after(run.output_dir, step, resumed=checkpoint):
            run.say(f"a later checkpoint of the run is set aside as {name}")
        gather_events(run.output_dir, run.name)


def delete_run(run: Run) -> None:
    """Delete what runs have written in the output folder, and nothing else; the first process does."""
    if not run.is_first_process:
        return
    delete_events(run.output_dir, run.name)
    folders.delete_run(run.output_dir)


def make_trainer(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    data: LoadedData,
    model: GPT2HFForCausalLM,
    best_is_comparable: bool,
    lock: RunLock,
) -> GPT2HFTrainer:
    """The trainer of the job.

    Raises:
        UserError: if transformers refuses an option, or the hub cannot be reached.
    """
    if run.args.push_to_hub and not ensure_hub_or_offline():
        upload = as_typed("hf", "upload", "USER/NAME", str(run.output_dir / folders.BEST_MODEL))
        raise UserError(f"--push_to_hub: the hub cannot be reached; leave it out and publish afterwards: {upload}")
    job = JobContext(
        watch=run.watch,
        signals=run.signals,
        run_files={RESOLVED_CONFIG_NAME: run.output_dir / RESOLVED_CONFIG_NAME},
        closing_seconds=closing_seconds(run, model),
        test_dataset=data.samples.get("test"),
        write_sample=sample_writer(run, tokenizer, data, run.args.sample_tokens),
        best_is_comparable=best_is_comparable,
        folder_is_lost=lambda: lock.lost,
    )
    try:
        return GPT2HFTrainer(
            model,
            run.args,
            data_collator=data.collator,
            train_dataset=data.samples["train"],
            eval_dataset=data.samples["validation"],
            processing_class=tokenizer,
            job=job,
            teachers=[teacher.model for teacher in run.teachers],
        )
    except (RuntimeError, ImportError, ValueError, TypeError, KeyError, OSError) as error:
        if is_out_of_memory(error):
            raise
        # What transformers refuses only now: a reporter that is not installed, a hub that does not answer.
        raise UserError(in_one_line(error)) from error


def record_of(checkpoint: Path, current: dict[str, Any]) -> dict[str, Any]:
    """The record of a run to which nothing is added: that which the checkpoint was trained with, if it has one.

    Args:
        checkpoint: the last one of the run.
        current: the record of this invocation, which names the folder and the text that is tested now.
    """
    record = without_secrets(read_object(checkpoint / RESOLVED_CONFIG_NAME))
    if not record:
        return current
    of_now = {name: current[name] for name in ("output_dir", "test_file", "do_predict") if name in current}
    trained_on, now = (each[PROVENANCE_KEY].get("data", {}) for each in (record, current))
    texts = {split: text for split, text in trained_on.items() if split != "test"}
    texts |= {split: text for split, text in now.items() if split == "test"}
    return {**record, **of_now, PROVENANCE_KEY: {**record[PROVENANCE_KEY], "data": texts}}


def run_training(
    run: Run, trainer: GPT2HFTrainer, checkpoint: Path | None, ended: str | None
) -> dict[str, Any] | None:
    """Train to the last step or to the end of the budget.

    Args:
        run, trainer, checkpoint: what is trained, and from where.
        ended: why there is nothing to do after the checkpoint (see `why_ended`).

    Returns:
        The Trainer's metrics; empty if the checkpoint is already at the end, and they are in the folder; `None` if a
        signal stopped the run.
    """
    begun = state_in(checkpoint).global_step if checkpoint is not None else 0
    at_end = checkpoint is not None and begun >= total_steps(run, trainer)
    if checkpoint is not None and ended is not None:
        run.say(f"{checkpoint} {ended}; nothing is left to train")
        trainer.state = state_in(checkpoint)
        # as a training would; the checkpoint says what the process was that has written it
        trainer.state.is_local_process_zero = trainer.is_local_process_zero()
        trainer.state.is_world_process_zero = trainer.is_world_process_zero()
        trainer.complete_publication(str(checkpoint))
        trainer.load_weights(checkpoint)  # of another folder's run, which leaves no model in this one
        if read_object(run.output_dir / TRAIN_RESULTS_NAME).get("train_steps") == begun:
            return {}
        if run.is_first_process:  # those of another branch
            delete_results(run.output_dir)
        stopped_early = not at_end and is_out_of_patience(trainer.state, run.args.early_stopping_patience)
        return totals(trainer, stopped_early, TimeBudgetCallback.kept_in(trainer.state).get("total_seconds", 0.0))
    if at_end:
        run.say(f"{checkpoint} is at the last step; the evaluation that a signal broke off is due now")
    if run.is_first_process:
        delete_results(run.output_dir)
    try:
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    except EvaluationInterruptedError:
        if trainer.state.global_step == 0:  # that of --eval_on_start, as if the signal had come before it
            run.say("stopped before the first step; nothing was saved")
            raise SystemExit(run.signals.exit_code) from None
        return None  # a missed evaluation, interrupted again; the checkpoint still says that it is missing
    if stopped_by_signal(run, trainer):
        return None
    if (line := way_to_evaluate(run, trainer.time_budget)) is not None:
        run.say(line)
    if trainer.stopped_early:
        run.say(
            f"stopped early at step {trainer.state.global_step:,}: {run.args.early_stopping_patience} evaluations "
            "in a row were no better (--early_stopping_patience)"
        )
    # without a step there is no loss to speak of
    metrics = output.metrics if output.global_step > begun else {}
    return {**metrics, **totals(trainer, trainer.stopped_early, trainer.time_budget.total_seconds)}


def totals(trainer: GPT2HFTrainer, stopped_early: bool, seconds: float) -> dict[str, Any]:
    """What is said of all invocations together, which took so many seconds."""
    early = {"stopped_early": True} if stopped_early else {}
    return {**early, "train_steps": trainer.state.global_step, "train_hours": seconds / 3600}


def state_in(checkpoint: Path) -> TrainerState:
    """The Trainer's state in a checkpoint; its step is known whatever the folder is called."""
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def total_steps(run: Run, trainer: GPT2HFTrainer) -> int:
    """The steps of the whole run."""
    return make_schedule(run.args, num_samples_of(trainer.train_dataset)).total_steps


def why_ended(run: Run, trainer: GPT2HFTrainer, checkpoint: Path | None) -> str | None:
    """Why there is nothing to do after a checkpoint; `None` if there is a step or an evaluation left."""
    if checkpoint is None or owes_evaluation(checkpoint):
        return None
    state = state_in(checkpoint)
    if state.global_step >= (last := total_steps(run, trainer)):
        return f"is already at step {last:,}, the last one"
    if is_out_of_patience(state, run.args.early_stopping_patience):
        return f"was stopped early (--early_stopping_patience {run.args.early_stopping_patience})"
    if run.args.schedule_by_time and TimeBudgetCallback.schedule_ended_at(checkpoint, state):
        return (
            "has reached the end of its wall-clock-based schedule (learning rate 0, --schedule_by_time). For a better "
            f"model begin a new run with more --max_training_hours, or with --model_name_or_path {checkpoint}"
        )
    return None


def way_to_evaluate(run: Run, budget: TimeBudgetCallback) -> str | None:
    """The commands for an evaluation that there was no time for; `None` if nothing is missing, or was saved."""
    if not budget.skipped_evaluation or run.args.save_strategy == SaveStrategy.NO:
        return None
    goes_on = "--resume_from latest goes on, or " if budget.expired and budget.schedule is None else ""
    command = as_typed("gpt2-hf", "evaluate", "--model_path", str(run.output_dir / folders.LATEST))
    return f"for an evaluation: {goes_on}{command} --split validation"


def stopped_by_signal(run: Run, trainer: GPT2HFTrainer) -> bool:
    """Whether a signal came while there was something to save; says from which checkpoint the run can be resumed.

    After the last step too: its evaluation may be broken off, and the scores and the report are still to come.
    """
    if not distributed.any_process(run.signals.received is not None):
        return False
    if run.is_first_process:
        of_this_step = run.output_dir / folders.checkpoint_folder(trainer.state.global_step)
        # to see that an earlier one is intact, all of it is read: the notice is short
        newest = of_this_step if of_this_step.is_dir() else folders.newest_valid(run.output_dir)[0]
        saved = f"go on from {newest} with --resume_from latest" if newest is not None else "nothing was saved"
        run.say(f"stopped at step {trainer.state.global_step:,}; {saved}")
    return True
