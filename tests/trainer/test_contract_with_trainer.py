"""What becomes of each argument of transformers' Trainer, each field of its arguments, and each hook of its callbacks.

`WORKS` and `REFUSED` name the test that shows it, `NO_MEANING` gives the reason. A new one of a later transformers
makes a test fail until somebody has decided.
"""

import ast
import dataclasses
import functools
import inspect

import pytest
from transformers import Trainer, TrainerCallback, TrainingArguments

from gpt2_hf import GPT2HFTrainingArguments

from ..conftest import REPOSITORY

AS_TRAINER, OPTIONS = "trainer/test_as_trainer.py::", "trainer/test_options.py::"
EVALUATION, TRAINER = "trainer/test_evaluation.py::", "trainer/test_gpt2_trainer.py::"
JOB = "job/test_main_job.py::"
TOGETHER = OPTIONS + "test_options_that_the_base_class_reads_act"
OPTIMIZER = OPTIONS + "test_hyperparameters_reach_the_optimizer"
WORKERS = OPTIONS + "test_workers_that_load_data"
EVALUATED = OPTIONS + "test_evaluation_options"
ORDERS = OPTIONS + "test_orders_of_foreign_data"
PLAIN = AS_TRAINER + "test_plain_arguments"
SHARDS, COPIES = "trainer/test_on_processes.py::test_two_shards", "trainer/test_on_processes.py::test_two_copies"
PRECISION = "runtime/test_precision.py::test_explicit_formats_are_obeyed_or_refused"
COMPILED = "runtime/test_fallbacks.py::test_the_run_goes_on_without"
MODE = "job/test_check.py::test_a_refused_command_writes_nothing"
RECOMPUTED = OPTIONS + "test_activations_that_are_computed_again_change_nothing"
HUB = AS_TRAINER + "test_the_hub_gets_what_the_arguments_say"
OF_COPIES = OPTIONS + "test_options_of_copies_reach_accelerate"
NOBODY = OPTIONS + "test_what_nobody_acts_on_is_refused"
NOT_FOLLOWED = AS_TRAINER + "test_plain_arguments_that_cannot_be_followed_are_refused"
BEST = EVALUATION + "test_training_with_metrics_finds_the_best_by_them"

HOOKS = ("on_init_end", "on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_step_begin")
HOOKS += ("on_pre_optimizer_step", "on_optimizer_step", "on_substep_end", "on_step_end", "on_evaluate", "on_predict")
HOOKS += ("on_save", "on_log", "on_prediction_step")

WORKS = {
    # arguments of the Trainer
    "model": AS_TRAINER + "test_stock_gpt2_is_trained_and_evaluated_exactly",
    "args": AS_TRAINER + "test_no_arguments",
    "data_collator": EVALUATION + "test_default_collator_is_stocks",
    "train_dataset": AS_TRAINER + "test_a_dataset_with_its_text_column",
    "eval_dataset": EVALUATION + "test_several_splits",
    "processing_class": HUB,
    "model_init": AS_TRAINER + "test_model_init",
    "compute_loss_func": EVALUATION + "test_a_loss_of_the_users_own_is_trained_on_and_evaluated",
    "compute_metrics": EVALUATION + "test_metrics_are_computed_and_the_loss_stays_exact",
    "callbacks": AS_TRAINER + "test_callbacks_that_change_control",
    "optimizers": AS_TRAINER + "test_own_optimizer_and_schedule",
    "optimizer_cls_and_kwargs": AS_TRAINER + "test_own_optimizer_class",
    "preprocess_logits_for_metrics": EVALUATION + "test_metrics_are_computed_and_the_loss_stays_exact",
    # how long, and on what
    "output_dir": AS_TRAINER + "test_no_arguments",
    "num_train_epochs": OPTIONS + "test_an_incomplete_last_batch_may_be_left_out",
    "max_steps": PLAIN,
    "resume_from_checkpoint": JOB + "test_resume_by_every_kind_of_name",
    "seed": "data/test_sampling.py::test_order_is_a_function_of_seed_and_epoch",
    "data_seed": OPTIONS + "test_the_order_has_a_seed_of_its_own",
    "use_cpu": PLAIN,
    "full_determinism": TOGETHER,
    "do_predict": JOB + "test_the_test_split_can_be_left_alone",
    # batches
    "per_device_train_batch_size": TRAINER + "test_accumulation_does_not_change_the_step",
    "gradient_accumulation_steps": TRAINER + "test_accumulation_does_not_change_the_step",
    "average_tokens_across_devices": "trainer/test_on_processes.py::test_tokens_are_counted_over_all_processes",
    "train_sampling_strategy": ORDERS,
    "length_column_name": ORDERS,
    "remove_unused_columns": AS_TRAINER + "test_a_dataset_with_its_text_column",
    "label_names": EVALUATED,
    "ignore_data_skip": OPTIONS + "test_data_may_be_read_again_from_the_start",
    "dataloader_drop_last": OPTIONS + "test_an_incomplete_last_batch_may_be_left_out",
    "dataloader_num_workers": WORKERS,
    "dataloader_pin_memory": WORKERS,
    "dataloader_persistent_workers": WORKERS,
    "dataloader_prefetch_factor": WORKERS,
    "dataloader_multiprocessing_context": WORKERS,
    "dataloader_in_order": WORKERS,
    "accelerator_config": OPTIONS + "test_accelerator_options",
    # the step
    "learning_rate": JOB + "test_a_new_learning_rate_takes_effect_on_resume",
    "lr_scheduler_type": OPTIONS + "test_schedules_by_metric",
    "lr_scheduler_kwargs": OPTIMIZER,
    "warmup_steps": OPTIMIZER,
    "optim": OPTIONS + "test_optimizers_that_take_arguments",
    "optim_args": OPTIONS + "test_optimizers_that_take_arguments",
    "optim_target_modules": OPTIONS + "test_optimizers_that_take_arguments",
    "weight_decay": TRAINER + "test_weight_decay_spares_biases_and_layer_norms",
    "adam_beta1": OPTIMIZER,
    "adam_beta2": OPTIMIZER,
    "adam_epsilon": OPTIMIZER,
    "max_grad_norm": OPTIMIZER,
    "label_smoothing_factor": TRAINER + "test_label_smoothing_trains_on_shifted_labels",
    "neftune_noise_alpha": AS_TRAINER + "test_noise_on_embeddings",
    "bf16": PRECISION,
    "fp16": PRECISION,
    "activation_checkpointing": RECOMPUTED,
    "activation_checkpointing_kwargs": RECOMPUTED,
    "gradient_checkpointing": RECOMPUTED,
    "gradient_checkpointing_kwargs": RECOMPUTED,
    "torch_compile": COMPILED,
    "torch_compile_backend": COMPILED,
    "torch_compile_mode": MODE,
    "torch_empty_cache_steps": TOGETHER,
    "debug": OPTIONS + "test_accelerator_options",
    # logs
    "logging_strategy": OPTIONS + "test_epochs_of_data_without_a_length",
    "logging_steps": TOGETHER,
    "logging_first_step": TOGETHER,
    "log_on_each_node": TOGETHER,
    "logging_nan_inf_filter": TOGETHER,
    "include_num_input_tokens_seen": TOGETHER,
    "log_level": TOGETHER,
    "log_level_replica": TOGETHER,
    "disable_tqdm": "trainer/test_callbacks.py::test_a_terminal_gets_a_bar_with_the_latest_numbers",
    "report_to": TRAINER + "test_other_reporters_are_kept_and_see_every_log",
    "run_name": TOGETHER,
    "project": TOGETHER,
    "trackio_space_id": TOGETHER,
    "trackio_bucket_id": TOGETHER,
    "trackio_static_space_id": TOGETHER,
    "skip_memory_metrics": TOGETHER,
    "use_cache": EVALUATION + "test_no_cache_is_built_for_a_loss",
    # evaluations
    "eval_strategy": JOB + "test_epoch_strategies_evaluate_and_save_once_per_epoch_and_at_each_best",
    "eval_steps": PLAIN,
    "eval_delay": TOGETHER,
    "per_device_eval_batch_size": EVALUATION + "test_metrics_are_computed_and_the_loss_stays_exact",
    "prediction_loss_only": EVALUATED,
    "eval_on_start": TOGETHER,
    "eval_do_concat_batches": EVALUATED,
    "eval_use_gather_object": EVALUATED,
    "eval_accumulation_steps": EVALUATED,
    "include_for_metrics": EVALUATION + "test_metrics_may_ask_for_inputs_and_losses",
    "batch_eval_metrics": EVALUATION + "test_metrics_by_batches",
    "metric_for_best_model": BEST,
    "greater_is_better": AS_TRAINER + "test_a_run_that_was_moved_ends_with_its_best_model",
    "load_best_model_at_end": AS_TRAINER + "test_an_adapter",
    # checkpoints
    "save_strategy": JOB + "test_a_signal_saves_whatever_the_save_strategy",
    "save_steps": PLAIN,
    "save_total_limit": JOB + "test_one_checkpoint_kept_is_the_newest",
    "save_only_model": OPTIONS + "test_checkpoints_without_the_optimizer",
    "push_to_hub": JOB + "test_the_best_model_is_uploaded_once_with_its_card",
    **dict.fromkeys(("hub_token", "hub_private_repo", "hub_model_id", "hub_revision", "hub_strategy"), HUB),
    "restore_callback_states_from_checkpoint": PLAIN,
    # several processes
    "ddp_find_unused_parameters": OF_COPIES,
    "ddp_bucket_cap_mb": OF_COPIES,
    "ddp_broadcast_buffers": OF_COPIES,
    "ddp_static_graph": OF_COPIES,
    "ddp_backend": COPIES,
    "ddp_timeout": TOGETHER,
    "fsdp": SHARDS,
    "fsdp_config": SHARDS,
    **dict.fromkeys(HOOKS, OPTIONS + "test_every_hook_is_called"),
}

REFUSED = {
    "tf32": OPTIONS + "test_what_a_device_does_not_have_is_refused",
    "bf16_full_eval": NOBODY,
    "fp16_full_eval": NOBODY,
    "liger_kernel_config": NOBODY,
    "hub_always_push": NOBODY,
    "parallelism_config": NOBODY,
    "use_liger_kernel": NOT_FOLLOWED,
    "auto_find_batch_size": NOT_FOLLOWED,
    "enable_jit_checkpoint": NOT_FOLLOWED,
    "save_on_each_node": NOT_FOLLOWED,
    "deepspeed": "end_to_end/test_distributed.py::test_deepspeed_is_refused",
    "do_train": OPTIONS + "test_what_a_script_asks_is_refused",
    "do_eval": OPTIONS + "test_what_a_script_asks_is_refused",
}

NO_MEANING = {
    "local_rank": "the launcher sets it",
    "on_push_begin": "nothing is pushed while training; push_to_hub() calls it as always",
}


def names():
    """Everything that needs a decision on the installed version."""
    arguments = list(inspect.signature(Trainer.__init__).parameters)[1:]
    fields = [field.name for field in dataclasses.fields(TrainingArguments)]
    return [*arguments, *fields, *(name for name in vars(TrainerCallback) if name.startswith("on_"))]


def test_everything_is_decided_once():
    """Each argument, field and hook of the installed transformers stands in one of the three tables."""
    decided = [*WORKS, *REFUSED, *NO_MEANING]
    assert len(set(decided)) == len(decided)
    assert not set(names()) - set(decided), "new in this transformers: try it, then add it to a table with its test"


@functools.cache
def definitions(file):
    """What a file of tests defines at its top, by name; of a shared one of the Trainer's tests too."""
    source = (REPOSITORY / "tests" / file).read_text(encoding="utf-8")
    found = definitions("trainer/helpers.py").copy() if file != "trainer/helpers.py" else {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min(part.lineno for part in (node, *node.decorator_list))
            found[node.name] = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
        elif isinstance(node, ast.Assign | ast.AugAssign):
            for name in {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}:
                found[name] = found.get(name, "") + "\n" + ast.unparse(node)
    return found


def source_of(test):
    """That of a test, and of what it uses of its file."""
    file, function = test.split("::")
    defined, names, found = definitions(file), [function], {}
    while names:
        if (name := names.pop()) in defined and name not in found:
            found[name] = defined[name]
            names += [node.id for node in ast.walk(ast.parse(found[name])) if isinstance(node, ast.Name)]
    return "\n".join(found.values())


SPELLINGS = {
    field.name: [name.removeprefix("--") for name in field.metadata.get("aliases", [])]
    for field in dataclasses.fields(GPT2HFTrainingArguments)
}


@pytest.mark.parametrize(("name", "test"), {**WORKS, **REFUSED}.items())
def test_every_test_that_is_named_has_the_option(name, test):
    """There is one of the name that the tables give, and what it shows stands in it, or in what it uses."""
    source = source_of(test)
    assert source, f"there is no {test}"
    if name not in HOOKS:  # all of which are found in the class
        assert any(spelling in source for spelling in (name, *SPELLINGS.get(name, []))), f"{test} does not name it"
