"""What a run may be resumed from: which checkpoint, and with which settings.

In: what the user asked for, and the checkpoints of the output folder. Out: a checkpoint that is intact and fits, or
one line that says why there is none.
"""

import json
import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..checkpoints import folders, manifest
from ..checkpoints.folders import RESOLVED_CONFIG_NAME, TRAINER_STATE_NAME
from ..checkpoints.written import is_config_of_run
from ..commands.model_loading import DEFAULT_OUTPUT_DIR
from ..commands.training_protocol import read_trained_config
from ..data import LoadedData
from ..errors import UserError
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import DEFAULT_HEAD_SIZE
from ..options.mixture import shares_of
from ..options.parsing import PROVENANCE_KEY
from ..options.secrets import is_secret, secret_names
from ..options.training_arguments import GPT2HFTrainingArguments, plain_value
from ..runtime import distributed
from ..runtime.command_lines import as_typed
from ..runtime.files import sha256
from ..trainer.remaining import num_samples_of
from .resolved_config import resolved_config
from .run import Run

# How long a network file system may take to show a file to other hosts: NFS remembers for up to a minute (`acdirmax`)
# that a name was not there.
_SECONDS_TO_APPEAR = 90.0

# A resumed run must keep these as they were: they decide which samples a step sees, and what it does with them.
_FIXED_ON_RESUME = (
    "sequence_mode",
    "max_length",
    "join_documents",
    "shift_blocks",
    "tie_unused_tokens",
    "truncate",
    "max_train_samples",
    "seed",
    "data_seed",
    "train_sampling_strategy",
    "optim",
    "streaming",
    "shuffle_buffer_size",
)


def find_checkpoint(run: Run) -> Path | None:
    """The checkpoint to resume from, checked; `None` for a fresh start.

    The first process chooses, since hosts may see different states of a disk, and all check that they see the same.

    Raises:
        UserError: on all processes, if there is no such checkpoint or one of them does not see it.
    """
    checkpoint = distributed.decided_by_first(lambda: _choose_checkpoint(run))
    if checkpoint is not None:
        check_shared(run, checkpoint / manifest.MANIFEST_NAME)
    return checkpoint


def check_shared(run: Run, path: Path) -> None:
    """Check that all processes see a file that the first one has read or written.

    Raises:
        UserError: on all processes, if one of them does not.
    """
    digest = distributed.decided_by_first(lambda: sha256(path))
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while not (seen := path.is_file() and sha256(path) == digest) and time.monotonic() < deadline:
        time.sleep(0.1)
    if distributed.any_process(not seen):
        raise UserError(
            f"--checkpoint_dir: not every process sees {path}, which the first one does; the folder must be shared "
            f"by all hosts: give one on a shared disk instead of {run.output_dir}"
        )


def refuse_moved_run(config: str, args: GPT2HFTrainingArguments) -> None:
    """Refuse to resume by the config in a run's folder, if it states another folder.

    Raises:
        UserError: with the option that names the folder of the run.
    """
    path = Path(config)
    if args.resume_from_checkpoint is None or path.name != RESOLVED_CONFIG_NAME or not is_config_of_run(path):
        return
    if folders.list_checkpoints(path.parent) and path.parent.resolve() != Path(str(args.output_dir)).resolve():
        raise UserError(
            f"--config: {path} states the folder {args.output_dir}, and lies in another one: the run was moved or "
            "copied, or is resumed from another working directory; add "
            f"{as_typed('--checkpoint_dir', str(path.parent))}"
        )


def refuse_present_run(run: Run) -> None:
    """Refuse a folder that holds a run, if it is neither to go on nor to be deleted."""
    begins = run.args.resume_from_checkpoint is None and not run.args.overwrite_output_dir
    if begins and folders.holds_run(run.output_dir):
        raise UserError(
            f"{run.output_dir} already holds a run: go on with --resume_from latest, choose another "
            "--checkpoint_dir, or delete it with --overwrite_output_dir"
        )


def refuse_deleting_sources(run: Run) -> None:
    """Refuse to delete the run whose model, tokenizer or teacher this one begins with.

    Raises:
        UserError: with the option that names it.
    """
    if not run.args.overwrite_output_dir:
        return
    named = [
        ("model_name_or_path", run.model_args.model_name_or_path),
        ("tokenizer_name", run.data_args.tokenizer_name),
        *(("distill_from", teacher) for teacher in run.args.distill_from or []),
    ]
    for option, source in named:
        if source is None:
            continue
        try:
            folder = folders.resolve_model(source, DEFAULT_OUTPUT_DIR)
        except UserError:
            continue  # of the hub, or nothing, which is said where it is read
        if folder.resolve().is_relative_to(run.output_dir.resolve()):
            raise UserError(
                f"--overwrite_output_dir would delete {source}, which --{option} names; choose another "
                "--checkpoint_dir"
            )


def _choose_checkpoint(run: Run) -> Path | None:
    reference = run.args.resume_from_checkpoint
    if run.output_dir.exists() and not run.output_dir.is_dir():
        raise UserError(f"--checkpoint_dir: {run.output_dir} is a file; give a folder")
    refuse_present_run(run)
    if reference is None:
        return None
    if run.args.overwrite_output_dir:
        raise UserError("--resume_from and --overwrite_output_dir contradict each other; give one of them")
    if reference == folders.LATEST:
        newest, passed_over = folders.newest_valid(run.output_dir)
        for line in passed_over:
            run.say(line)
        if newest is None and passed_over:
            raise UserError(f"--resume_from: no checkpoint in {run.output_dir} is undamaged; start again elsewhere")
        best = run.output_dir / folders.BEST_MODEL
        if newest is None and best.exists():  # which a new run would replace
            raise UserError(
                f"--resume_from: {run.output_dir} has a {folders.BEST_MODEL} and no checkpoint; start from it "
                f"elsewhere with --model_name_or_path {best}, or give --overwrite_output_dir in place of --resume_from"
            )
        run.say(f"resuming from {newest}" if newest else f"nothing to resume in {run.output_dir}: starting fresh")
        return newest
    try:
        folder = folders.resolve(reference, run.output_dir)
    except UserError as error:
        raise UserError(f"--resume_from: {error}") from error
    if folder.name == folders.BEST_MODEL:
        raise UserError(
            f"--resume_from: {folder} holds weights only, its checkpoint is gone; start from them with "
            f"--model_name_or_path {folder}"
        )
    if (problem := manifest.damage(folder)) is not None:
        raise UserError(
            f"--resume_from: {folder} is damaged ({problem}); --resume_from latest finds the newest intact one"
        )
    if folder.parent.resolve() != run.output_dir.resolve() and folders.holds_run(run.output_dir):
        raise UserError(
            f"--resume_from: {folder} is of another run and {run.output_dir} already holds one; add --checkpoint_dir "
            f"{folder.parent}, or choose an empty folder"
        )
    run.say(f"resuming from {folder}")
    return folder


# With another value of these, or another validation text, evaluations cannot be compared with earlier ones.
_DECIDE_WHICH_IS_BEST = ("metric_for_best_model", "max_eval_samples")
# Schedules whose learning rate is their own state, made by the evaluations so far.
_SCHEDULES_BY_METRIC = ("reduce_lr_on_plateau", "greedy")


def check_resumable(run: Run, checkpoint: Path, model: GPT2HFForCausalLM, data: LoadedData) -> bool:
    """Refuse what a checkpoint cannot be continued with, and say which settings have changed.

    Returns:
        Whether evaluations can be compared with those before the checkpoint, so that its best model may remain so.

    Raises:
        UserError: if the checkpoint lacks its optimizer, or model, data, teachers or batch size are not the same.
    """
    if not (checkpoint / TRAINER_STATE_NAME).is_file() or not list(checkpoint.glob("optimizer*")):
        raise UserError(
            f"--resume_from: {checkpoint} holds weights but no optimizer; start from them with "
            f"--model_name_or_path {checkpoint}"
        )
    _refuse_another_model(checkpoint, model)
    saved = read_trained_config(str(checkpoint))
    if not saved:
        return True
    current = resolved_config(run, model, data)
    _check_mix(saved, current)
    _refuse_another_run(run, checkpoint, saved[PROVENANCE_KEY], current[PROVENANCE_KEY])
    changed = changed_options(run, saved, current, num_samples_of(data.samples["train"]))
    _refuse_another_course(checkpoint, changed, (saved, current))
    if secrets := secret_names(saved):
        run.say(
            f"warning: an earlier version wrote {', '.join(secrets)} into {checkpoint / RESOLVED_CONFIG_NAME} and the "
            "files beside it; revoke what it gives access to"
        )
    _say_changes(run, changed, saved[PROVENANCE_KEY], current[PROVENANCE_KEY])
    validation = {config[PROVENANCE_KEY]["data"].get("validation") for config in (saved, current)}
    return len(validation) == 1 and not changed.keys() & set(_DECIDE_WHICH_IS_BEST)


def _refuse_another_model(checkpoint: Path, model: GPT2HFForCausalLM) -> None:
    saved = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    was, becomes = _sizes(saved), _sizes(model.config.to_dict())
    for name in was:
        if was[name] != becomes[name]:
            raise UserError(
                f"--resume_from: the model in {checkpoint} has {name}={was[name]}, this run asks for "
                f"{becomes[name]}; a resumed run keeps its model"
            )


def _refuse_another_run(run: Run, checkpoint: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuse other samples, by the circumstances that two runs have recorded."""
    was, becomes = (each.get("separator") for each in (saved, current))  # earlier versions did not write it down
    if None not in (was, becomes) and was != becomes:
        raise UserError(
            f"--resume_from: the token between documents had the id {was} and now has {becomes}; give the tokenizer "
            f"that {checkpoint} was trained with"
        )
    if saved["data"]["train"] != current["data"]["train"]:
        raise UserError(
            f"--resume_from: the training text is not the one that {checkpoint} was trained on; start a new run with "
            f"--model_name_or_path {checkpoint}"
        )
    if saved.get("teachers", []) != current.get("teachers", []):
        raise UserError(
            f"--resume_from: the weights of the models in --distill_from are not those that {checkpoint} learned "
            f"from; give the same models in the same order, or start a new run with --model_name_or_path {checkpoint}"
        )
    was, becomes = (each["samples_per_step"] for each in (saved, current))
    if was != becomes:
        raise UserError(
            f"--resume_from: {checkpoint} was trained with {was} samples per step, this run asks for {becomes}; give "
            f"--global_batch_size {was}, which keeps it on any number of devices"
        )
    was, becomes = (each["processes"] for each in (saved, current))
    if was != becomes and run.data_args.streaming:
        raise UserError(
            f"--resume_from: the stream was divided among {was} processes, and none of {becomes} would know where it "
            f"is; go on with {was}"
        )


def _refuse_another_course(
    checkpoint: Path, changed: dict[str, tuple[Any, Any]], configs: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """Refuse options that cannot change in the middle of a run."""
    for name in _FIXED_ON_RESUME:
        if name in changed:
            was, becomes = changed[name]
            raise UserError(f"--resume_from: --{name} was {was} and cannot become {becomes} in the middle of a run")
    schedules = {plain_value(config.get("lr_scheduler_type", "cosine")) for config in configs}
    if schedules & set(_SCHEDULES_BY_METRIC) and changed.keys() & {"learning_rate", "lr_scheduler_type"}:
        raise UserError(
            "--resume_from: with a schedule that follows the evaluations, --learning_rate and --lr_scheduler_type "
            f"cannot change in the middle of a run; start a new one with --model_name_or_path {checkpoint}"
        )


def _say_changes(
    run: Run, changed: dict[str, tuple[Any, Any]], saved: dict[str, Any], current: dict[str, Any]
) -> None:
    """Say which options, and which circumstances, are not those of the checkpoint."""
    if changed:
        lines = [f"{name} {was} → {becomes}" for name, (was, becomes) in changed.items()]
        run.say("changed since the checkpoint: " + ", ".join(lines))
    was, becomes = (each["processes"] for each in (saved, current))
    if was != becomes:
        run.say(f"changed since the checkpoint: processes {was} → {becomes}; random states are re-initialised")
    if circumstances := _changed_circumstances(saved, current):
        run.say(
            f"changed since the checkpoint: {', '.join(circumstances)}; sums run in another order, so results may "
            "differ in the last bits from an uninterrupted run"
        )


def _check_mix(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """The weights decide which samples an epoch has; their proportions count, not their scale."""
    was, becomes = (
        {name: round(share, 9) for name, share in shares_of(config.get("train_mix") or {}).items()}
        for config in (saved, current)
    )
    if was != becomes:
        raise UserError(
            f"--resume_from: --train_mix had the shares {was or 'none'} and cannot have {becomes or 'none'} in the "
            "middle of a run; start a new one with --model_name_or_path"
        )


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes of a model, those that are derived from others when they are left out among them."""
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
    sizes = {name: config.get(name) for name in names}
    return {**sizes, "n_inner": sizes["n_inner"] or 4 * (sizes["n_embd"] or 0)}


# The same steps on other ones of these give other last bits; `processes` has a line of its own.
_CIRCUMSTANCES = ("threads", "device", "precision", "torch")


def _changed_circumstances(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """What is not as it was; what an earlier version did not write down is not known."""
    return [
        f"{name} {saved[name]} → {current[name]}"
        for name in _CIRCUMSTANCES
        if name in saved and saved[name] != current[name]
    ]


# Where a run is changes nothing in it, and `greater_is_better` follows from the metric.
_NOT_COMPARED = (PROVENANCE_KEY, "output_dir", "greater_is_better")


def changed_options(
    run: Run, saved: dict[str, Any], current: dict[str, Any], num_train_samples: int | None = None
) -> dict[str, tuple[Any, Any]]:
    """Options with another effect than in a checkpoint's config, also those that only one of the two states."""
    defaults = {
        field.name: field.default
        for owner in (run.model_args, run.data_args, run.args)
        for field in fields(owner)
        if field.default is not MISSING
    }
    limit = current.get("max_train_samples")
    if limit is not None and limit == num_train_samples:
        num_train_samples = None  # how many there would be without it is not known
    changed = {}
    for name in dict.fromkeys([*saved, *current]):
        if name in _NOT_COMPARED or is_secret(name):
            continue
        was, becomes = (_effective(name, {**defaults, **config}, num_train_samples) for config in (saved, current))
        if was != becomes:
            changed[name] = (was, becomes)
    return changed


def _effective(name: str, options: dict[str, Any], num_train_samples: int | None) -> Any:
    """The value that an option has in effect: one that is left out follows from others."""
    value = plain_value(options.get(name))
    if name == "max_train_samples" and value is not None and value > (num_train_samples or value):
        return None  # it limits nothing
    if name in ("activation_checkpointing", "gradient_checkpointing"):
        return bool(options.get("activation_checkpointing") or options.get("gradient_checkpointing"))
    if value is not None:
        return value
    width = options.get("d_model") or 0
    derived = {
        "num_heads": max(width // DEFAULT_HEAD_SIZE, 1),
        "d_ff": 4 * width,
        "data_seed": options.get("seed"),
        "eval_steps": options.get("logging_steps"),
        "attn_implementation": "sdpa",
    }
    if plain_value(options.get("optim")) == "muon":
        derived |= {
            "muon_learning_rate": options.get("learning_rate"),
            "muon_weight_decay": options.get("weight_decay"),
        }
    return derived.get(name)
