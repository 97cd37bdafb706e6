"""What a Trainer is asked for that contradicts itself, or that its data cannot give: refused when it is made.

In: the arguments of `GPT2HFTrainer`. Out: nothing, or one line about what to change.
"""

from collections.abc import Iterator
from typing import Any

from transformers import EarlyStoppingCallback
from transformers.trainer_utils import HubStrategy

from ..data import FlatteningCollator, MixedSamples, PaddingCollator, Samples, StreamingSamples
from ..errors import UserError
from ..options.parsing import check_acting
from ..options.training_arguments import SMOOTHED_AND_TAUGHT, GPT2HFTrainingArguments
from .loss import LossTrainer

_OVER_ALL = ("loss", "perplexity", "eval_loss", "eval_perplexity")
_OF_OPTIMIZERS = ("muon_", "adam_")  # beginnings of their options' names

UNKNOWN_FILLER = (
    "the last batches of these samples are completed with samples that have no targets, which only this package's "
    "collators know; use PaddingCollator, FlatteningCollator, or a subclass of one"
)


def knows_filler(collator: Any) -> bool:
    """Whether a collator is this package's, and gives samples marked `is_filler` no targets."""
    return isinstance(collator, FlatteningCollator | PaddingCollator)


def is_filled_up(args: GPT2HFTrainingArguments, split: Any) -> bool:
    """Whether batches of an evaluation are completed, for all processes to have as many, and of one text each."""
    return isinstance(split, MixedSamples) or (args.world_size > 1 and isinstance(split, Samples))


def check_combinations(
    args: GPT2HFTrainingArguments,
    data_collator: Any,
    train_dataset: Any,
    eval_dataset: Any,
    callbacks: list[Any],
    optimizers: tuple[Any, Any],
    trainer: LossTrainer,
    has_job: bool,
) -> None:
    """Refuse what would have no effect, or another one than it says.

    Args:
        args, data_collator, train_dataset, eval_dataset, callbacks, optimizers: as the Trainer got them.
        trainer: not yet initialised; its loss and its metrics are looked at.
        has_job: whether there is a job around it, which uploads the model and has checked what was stated.

    Raises:
        UserError: with the option and the remedy.
    """
    problems = [
        *_of_the_collator(args, data_collator, trainer),
        *_of_filler(args, data_collator, train_dataset, eval_dataset),
        *_of_the_loss(args, trainer),
        *_of_teachers(args, trainer, has_job),
        *_of_the_splits(args, eval_dataset, callbacks),
        *_of_the_rest(args, train_dataset, optimizers, has_job),
    ]
    if problems:
        raise UserError(problems[0])
    if not has_job:
        check_acting(args, [name for name in args.stated if name.startswith(_OF_OPTIMIZERS)])


def _of_the_collator(args: GPT2HFTrainingArguments, collator: Any, trainer: LossTrainer) -> Iterator[str]:
    is_flat = isinstance(collator, FlatteningCollator)
    is_own = knows_filler(collator)
    if args.neftune_noise_alpha is not None and is_flat:
        yield (
            "--neftune_noise_alpha goes by the length of a row, and in sequence_mode padding_free a row holds many "
            "samples; use --sequence_mode padded"
        )
    if args.include_num_input_tokens_seen == "non_padding" and is_own:
        yield (
            "--include_num_input_tokens_seen non_padding needs an attention mask, which the batches do not have; "
            "use --include_num_input_tokens_seen all with --sequence_mode padding_free, where nothing is padding"
        )
    if trainer.compute_loss_func is not None and is_own:
        yield (
            "compute_loss_func needs labels, and this package's collators give shift_labels; override compute_loss "
            "in a subclass, or use a collator of transformers"
        )
    if trainer.compute_metrics is not None and "inputs" in args.include_for_metrics and is_flat:
        yield (
            "include_for_metrics=['inputs'] needs one row per sample, and in sequence_mode padding_free a row holds "
            "many; use --sequence_mode padded"
        )


def _of_filler(args: GPT2HFTrainingArguments, collator: Any, train_dataset: Any, eval_dataset: Any) -> Iterator[str]:
    splits = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    is_shared_out = args.world_size > 1 and isinstance(train_dataset, Samples)
    if not knows_filler(collator) and (is_shared_out or any(is_filled_up(args, split) for split in splits)):
        yield UNKNOWN_FILLER


def _of_the_loss(args: GPT2HFTrainingArguments, trainer: LossTrainer) -> Iterator[str]:
    if trainer.has_own_loss and str(args.metric_for_best_model).endswith("perplexity"):
        yield "--metric_for_best_model perplexity is not known for a loss of your own; use loss"
    if trainer.has_own_loss and args.label_smoothing_factor and trainer.compute_loss_func is not None:
        yield "--label_smoothing_factor has no effect with compute_loss_func; leave it out"


def _of_teachers(args: GPT2HFTrainingArguments, trainer: LossTrainer, has_job: bool) -> Iterator[str]:
    if args.distill_from and trainer.distillation is None:
        yield (
            "--distill_from is read by the main job; load the models and give them to GPT2HFTrainer as teachers=[...]"
        )
    if trainer.distillation is None:
        without = [name for name in args.stated if name.startswith("distill_") and not has_job]
        if without:
            yield f"--{without[0]} has no effect without teachers; leave it out, or give GPT2HFTrainer teachers=[...]"
        return
    if args.label_smoothing_factor:
        yield SMOOTHED_AND_TAUGHT
    if trainer.has_own_loss:
        yield "teachers have no effect with a loss of your own; leave one of them out"


def _of_the_splits(args: GPT2HFTrainingArguments, eval_dataset: Any, callbacks: list[Any]) -> Iterator[str]:
    names = [f"eval_{name}_loss" for name in eval_dataset] if isinstance(eval_dataset, dict) else []
    given = any(isinstance(each, EarlyStoppingCallback) for each in callbacks)
    if (given or args.early_stopping_patience is not None) and names and args.metric_for_best_model in _OVER_ALL:
        yield (
            f"{'EarlyStoppingCallback' if given else '--early_stopping_patience'} is told of one split after the "
            f"other; set --metric_for_best_model to one of them, such as {names[0]}"
        )


def _of_the_rest(
    args: GPT2HFTrainingArguments, train_dataset: Any, optimizers: tuple[Any, Any], has_job: bool
) -> Iterator[str]:
    if args.dataloader_drop_last and isinstance(train_dataset, Samples):
        yield "--dataloader_drop_last has no effect: the last batch is completed with samples without targets"
    if not args.dataloader_in_order and isinstance(train_dataset, StreamingSamples):
        yield "--dataloader_in_order false has no effect with --streaming, which resumes by the order; leave it out"
    if args.schedule_by_time and optimizers[1] is not None:
        yield "--schedule_by_time has no effect beside a scheduler of your own; leave one of them out"
    if args.overwrite_output_dir and not has_job:
        yield (
            "--overwrite_output_dir is read by the main job; leave it out: when training begins, later checkpoints of "
            "an earlier run are set aside"
        )
    if args.sample_tokens not in (0, GPT2HFTrainingArguments.sample_tokens) and not has_job:
        yield "--sample_tokens is read by the main job; leave it out, and let a callback generate texts"
    if args.verbose and not has_job:
        yield "--verbose is read by the main job; leave it out"
    if args.push_to_hub and not has_job and args.hub_strategy != HubStrategy.END:
        yield "--push_to_hub uploads nothing while it trains; set --hub_strategy end and call push_to_hub() afterwards"
