"""What this package relies on inside transformers' Trainer, beyond what its documentation promises.

A private method that is overridden must still be called, from the same places and with the same arguments, or a
promise here would be broken without an error. `test_contract.py` compares this list with the installed
version; it holds from transformers 5.17 to 5.23.
"""

from typing import NamedTuple


class Hook(NamedTuple):
    """A private method of transformers' Trainer that is overridden.

    Attributes:
        parameters: its parameters.
        callers: the methods of the Trainer that call it.
        purpose: what is done in it, and what must be true where it is called.
    """

    parameters: tuple[str, ...]
    callers: tuple[str, ...]
    purpose: str


_EPOCH = (
    *("model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
    *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
    "steps_trained_in_current_epoch",
)
_TRAINING_STATE = ("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial")
_WHAT_IS_DUE = (
    *("tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time"),
    "learning_rate",
)

OVERRIDDEN = {
    "_determine_best_metric": Hook(
        ("metrics", "trial"),
        ("_maybe_log_save_evaluate",),
        "keeps the best before; comes before saving",
    ),
    "_evaluate": Hook(
        ("trial", "ignore_keys_for_eval", "skip_scheduler"),
        ("_inner_training_loop", "_maybe_log_save_evaluate"),
        "an evaluation that a signal breaks off ends the training with a checkpoint",
    ),
    "_finalize_training": Hook(
        ("trial", "num_train_samples", "start_time"),
        ("_inner_training_loop",),
        "with save_total_limit 1 the newest checkpoint is kept; the training loss is that of this call",
    ),
    "_get_eval_sampler": Hook(
        ("eval_dataset",), ("get_eval_dataloader", "get_test_dataloader"), "in order, filled up for every process"
    ),
    "_get_grad_norm": Hook(
        ("model", "grad_norm"), ("_run_epoch",), "comes between clipping and the optimizer's step, in every step"
    ),
    "_get_train_sampler": Hook(("train_dataset",), ("get_train_dataloader",), "an order by seed and epoch alone"),
    "_hp_search_setup": Hook(("trial",), ("train",), "what a search cannot change is refused"),
    "_init_training_state": Hook(
        _TRAINING_STATE,
        ("_inner_training_loop",),
        "the state is there, the schedule is not yet made; special tokens are in the generation config",
    ),
    "_issue_warnings_after_load": Hook(
        ("load_result",), ("_load_best_model", "_load_from_checkpoint"), "no warning of tied weights"
    ),
    "_load_best_model": Hook((), ("_finalize_training",), "a sharded model is loaded from one file"),
    "_load_from_checkpoint": Hook(
        ("resume_from_checkpoint", "model"), ("_prepare_for_training", "train"), "safetensors alone, no pickle"
    ),
    "_load_optimizer_and_scheduler": Hook(("checkpoint",), ("_prepare_for_training",), "no pickle; new settings win"),
    "_load_rng_state": Hook(
        ("checkpoint",), ("_run_epoch",), "the state of the process; comes when the data are at their place"
    ),
    "_load_scaler": Hook(("checkpoint",), ("_prepare_for_training",), "no pickle"),
    "_maybe_log_save_evaluate": Hook(
        _WHAT_IS_DUE,
        ("_run_epoch",),
        "comes after each step and at the end of each epoch; does what `control` asks for",
    ),
    "_run_epoch": Hook(_EPOCH, ("_inner_training_loop",), "the epoch reaches the sampler of every process"),
    "_save": Hook(("output_dir", "state_dict"), ("save_model",), "without training_args.bin, a pickle"),
    "_set_signature_columns_if_needed": Hook(
        (),
        ("_get_collator_with_removed_columns", "_remove_unused_columns"),
        "no column is dropped that the model takes",
    ),
    "_save_checkpoint": Hook(
        ("model", "trial"), ("_maybe_log_save_evaluate",), "complete or absent; everything of a checkpoint is in it"
    ),
}
"""The private methods that are overridden."""

USED = {
    "_created_lr_scheduler": "true once the schedule is made from the arguments, false for one of the user's own",
    "_get_num_items_in_batch": "counts `shift_labels` of a list of batches, over all processes",
    "_eval_dataloaders": "with persistent workers, the loader of a split",
    "_get_output_dir": "where checkpoints go, for a trial too",
    "_globalstep_last_logged": "step of the last log",
    "_prepare_inputs": "moves a batch to the device",
    "_signature_columns": "names of the columns that a loader keeps",
    "_total_loss_scalar": "summed loss of this call up to the last log",
    "_tr_loss": "summed loss since the last log, a tensor",
    "_train_batch_size": "samples of a process in one forward pass",
}
"""Private methods that are called, and attributes that are read or set."""

SINCE = {
    "_initial_global_step": ("5.19", "step at which this call began; with it, loss and speeds are those of this call"),
}
"""Names that are asked for, because older releases lack them: the first release that has each, and its use."""
