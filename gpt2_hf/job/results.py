"""What a run leaves when its training is over: scores, a sample, a report, and lines for the person who waits.

In: a trained model and its data. Out: result files, model card and curves in the output folder.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.trainer_callback import TrainerState

from ..checkpoints import folders, written
from ..checkpoints.event_files import CONFIG_TAG, RUNS_FOLDER, own_events
from ..checkpoints.folders import is_best_model, saved_model
from ..checkpoints.written import CARD_NAME, CURVES_NAME, TRAINER_STATE_NAME
from ..commands.generate import generate_text
from ..commands.report import best_evaluation, write_report
from ..data import LoadedData
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.secrets import hide, without_secrets
from ..runtime import distributed
from ..runtime.command_lines import as_typed
from ..runtime.files import read_object
from ..runtime.hub import upload_model
from ..runtime.random_state import preserved_rng
from ..trainer.gpt2_trainer import GPT2HFTrainer
from ..trainer.remaining import generation_seconds
from .run import Run

# What the job still does after training besides the test split, as a share of the time it took to start, reading the
# text and trying sizes not counted: both are importing, reading and writing, and a machine that is slow at one is slow
# at the other.
_REPORT_SHARE_OF_START = 0.75
_SAMPLE_TOKENS = 120
# How much longer than estimated the rest of a run may take.
_ROOM = 1.2
_ROOM_SECONDS = 30.0
_PROMPT_TOKENS = 12


def closing_seconds(run: Run, model: GPT2HFForCausalLM) -> float:
    """Estimated time of results, sample and report, asked when the run is about to start."""
    return report_seconds(run) + generation_seconds(_SAMPLE_TOKENS, model.num_parameters())


def report_seconds(run: Run) -> float:
    """Estimated time of results and report."""
    aside = sum(run.watch.total.get(part, 0.0) for part in ("data", "sizing"))
    return _REPORT_SHARE_OF_START * (run.watch.elapsed - aside)


def finish(
    run: Run,
    trainer: GPT2HFTrainer,
    tokenizer: PreTrainedTokenizerBase,
    data: LoadedData,
    train_metrics: dict[str, Any],
) -> None:
    """Score the run's model, write results and report, and show a sample."""
    state = trainer.state
    if run.is_first_process:
        write_state(run.output_dir, state)
    if train_metrics:
        write_metrics(run, "train", train_metrics)
    saved = distributed.decided_by_first(  # another host may see an older folder
        lambda: saved_model(run.output_dir, state.best_global_step, state.global_step)
    )
    if saved is not None:
        trainer.load_weights(saved)
    step = state.best_global_step if is_best_model(saved) else state.global_step
    eval_metrics = eval_metrics_of(state, step)
    if eval_metrics:
        write_metrics(run, "eval", eval_metrics)
    test_metrics = _score_test(run, trainer, saved)
    sample = ""
    if run.is_first_process:
        sample = _final_sample(run, trainer, tokenizer, data, saved)
        for path in write_report(run.output_dir, saved, sample):
            run.say(f"{path} was not written by this run, or was changed since; it is left as it is")
    if (line := cut_short(run, trainer)) is not None:
        run.say(line)
    say_results(run, eval_metrics, test_metrics, sample, saved)
    if run.args.push_to_hub and run.is_first_process:
        publish(run, str(trainer.hub_model_id), saved)


def publish(run: Run, repo_id: str, saved: Path | None) -> None:
    """Upload a model with its card and curves, without the state of a training, and say where it is."""
    if saved is None:
        run.say("nothing was saved of this model, so nothing is uploaded")
        return
    run.say(f"uploading {saved} to {repo_id}")
    further = {}
    for path in own_events(run.output_dir, run.name):
        if _shows_secrets(path):
            run.say(f"{path} is not uploaded: an earlier version wrote a token or password into it")
        else:
            further[path.relative_to(run.output_dir).as_posix()] = path
    left_out = [folders.RESOLVED_CONFIG_NAME] if has_secrets(saved / folders.RESOLVED_CONFIG_NAME) else []
    if not is_best_model(saved):
        kept = [path.name for path in folders.model_files(saved)]
        left_out += sorted(path.name for path in saved.iterdir() if path.name not in [*kept, *left_out])
        report = [run.output_dir / name for name in (CARD_NAME, CURVES_NAME)]
        further |= {path.name: path for path in report if path.is_file()}
    address = upload_model(saved, repo_id, run.args.hub_token, run.args.hub_revision, left_out, further)
    run.say(f"uploaded: {address}")


def has_secrets(config: Path) -> bool:
    """Whether a resolved config, which an earlier version may have written, has what must not be published."""
    content = read_object(config)
    return bool(without_secrets(content) != content)


def _shows_secrets(events: Path) -> bool:
    """Whether an earlier version has written an event file, with a secret in one of its texts."""
    content = events.read_bytes()
    text = content.decode(errors="replace")
    return CONFIG_TAG in content and hide(text) != text


def write_state(output_dir: Path, state: TrainerState) -> None:
    """Write the state at the end of a run, as transformers' `save_state` does."""
    text = json.dumps(dataclasses.asdict(state), indent=2, sort_keys=True) + "\n"
    written.write_text(output_dir, TRAINER_STATE_NAME, text)


def write_metrics(run: Run, split: str, metrics: dict[str, Any]) -> None:
    """Write the metrics of a split, and add them to those of all, as transformers' `save_metrics` does."""
    if not run.is_first_process:
        return
    everything = read_object(run.output_dir / "all_results.json")
    for name, content in ((split, metrics), ("all", {**everything, **metrics})):
        text = json.dumps(content, indent=4, sort_keys=True) + "\n"
        written.write_text(run.output_dir, f"{name}_results.json", text)


def eval_metrics_of(state: TrainerState, step: int | None) -> dict[str, Any]:
    """The validation metrics of the model of a step, as they were measured then; the last ones where it has none."""
    entry = best_evaluation(state.log_history, step)
    return {name: value for name, value in entry.items() if name.startswith("eval_") or name == "step"}


def _score_test(run: Run, trainer: GPT2HFTrainer, saved: Path | None) -> dict[str, float]:
    if trainer.job.test_dataset is None:
        return {}
    hours = run.args.max_training_hours
    if hours is not None:
        remaining = trainer.remaining_work()
        needed = remaining.test + remaining.closing
        if math.isinf(needed) and not trainer.time_budget.expired:
            # nothing was trained, or a step or two: what an earlier evaluation took, if there was one
            needed = trainer.seconds_in_history(trainer.job.test_dataset) + remaining.closing
        if distributed.any_process(run.watch.elapsed + needed > hours * 3600):
            command = as_typed("gpt2-hf", "evaluate", "--model_path", str(saved))
            hint = f"; score it with: {command}" if saved is not None else ""
            run.say(f"no time is left for the test split{hint}")
            return {}
    metrics = trainer.evaluate(trainer.job.test_dataset, metric_key_prefix="test")
    write_metrics(run, "test", metrics)
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
        dtype = run.args.resolved_precision.dtype
        flash = "flash" in model.config._attn_implementation  # which computes in 16 bits alone
        with torch.autocast(model.device.type, dtype=dtype, enabled=flash and dtype != torch.float32):
            tokens = min(num_tokens, room)
            (text,) = generate_text(
                model,
                tokenizer,
                prompt,
                max_new_tokens=tokens,
                min_new_tokens=tokens // 2,  # a text that ends at once would show nothing of the model
                seed=run.args.seed,
            )
        return text

    return write


def _final_sample(
    run: Run, trainer: GPT2HFTrainer, tokenizer: PreTrainedTokenizerBase, data: LoadedData, saved: Path | None
) -> str:
    write = sample_writer(run, tokenizer, data, _SAMPLE_TOKENS)
    assert write is not None
    model = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled:
        # a sharded model runs on all processes at once, and only this one has something to say
        if saved is None:
            return ""
        model = GPT2HFForCausalLM.from_pretrained(saved).to(trainer.args.device)
    with preserved_rng(trainer.args.device):
        return write(model)


def cut_short(run: Run, trainer: GPT2HFTrainer) -> str | None:
    """What to know of a run that its budget ended before its schedule, and the command that finishes it."""
    state = trainer.state
    if not trainer.time_budget.expired or run.args.schedule_by_time:  # the schedule ends with the budget then
        return None
    evaluations = sum("eval_loss" in entry for entry in state.log_history)
    times = "once" if evaluations == 1 else f"{evaluations} times"
    return (
        f"CUT SHORT by the time budget at step {state.global_step:,} of {state.max_steps:,}, evaluated {times}: the "
        "learning rate was still high, and the model is not what a complete run gives. Finish it: "
        f"{_command_to_finish(run, trainer)}"
    )


def _command_to_finish(run: Run, trainer: GPT2HFTrainer) -> str:
    """With more hours, where those given are not enough for the rest."""
    hours = run.args.max_training_hours
    assert hours is not None
    trained = run.watch.total.get("step", 0.0)
    rest = (trainer.state.max_steps - trainer.state.global_step) * (run.watch.median("step") or trained)
    # all but training takes as long again
    needed = math.ceil((_ROOM * (rest + run.watch.elapsed - trained) + _ROOM_SECONDS) / 36) / 100
    options = "--resume_from latest" + (f" --max_training_hours {needed:g}" if needed > hours else "")
    if run.args.world_size > 1:
        return f"the same command with {options}"
    config = as_typed(str(run.output_dir / folders.RESOLVED_CONFIG_NAME))
    return f"gpt2-hf train --config {config} {options}"


def say_results(
    run: Run, eval_metrics: dict[str, Any], test_metrics: dict[str, float], sample: str, saved: Path | None
) -> None:
    """The end of the job as a person reads it."""
    if eval_metrics:
        what = "best model" if is_best_model(saved) else "last evaluation"
        run.say(
            f"{what}: step {eval_metrics['step']:,}, validation loss {eval_metrics['eval_loss']:.4f}, "
            f"perplexity {eval_metrics['eval_perplexity']:.2f}"
        )
    if test_metrics:
        run.say(f"test loss {test_metrics['test_loss']:.4f}, perplexity {test_metrics['test_perplexity']:.2f}")
    if sample:
        run.say(f"\n--- a sample of the model ---\n{sample.strip()}\n---\n")
    run.say(f"results: {run.output_dir}  (model: {saved or 'not saved'}, curves: {run.output_dir / CURVES_NAME})")
    if saved is not None:
        run.say(f'next: gpt2-hf generate --model_path {as_typed(str(saved))} --prompt "..."')
    if (run.output_dir / RUNS_FOLDER).is_dir():
        run.say(f"      tensorboard --logdir {as_typed(str(run.output_dir / RUNS_FOLDER))}")
