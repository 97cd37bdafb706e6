"""Options of transformers' TrainingArguments that the base class reads: they act here as there."""

import math
import multiprocessing

import datasets
import pytest
import torch
from transformers import TrainerCallback, default_data_collator
from transformers.debug_utils import DebugUnderflowOverflow
from transformers.utils import logging

from gpt2_hf import GPT2HFForCausalLM, GPT2HFTrainer
from gpt2_hf.checkpoints import folders
from gpt2_hf.data import FlatteningCollator
from gpt2_hf.errors import UserError
from gpt2_hf.options.arguments import names_of
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.runtime import distributed

from ..data_fixtures import streamed_lines
from .helpers import BLOCKS, Overflows, Stream, assert_exact, logged, make_model, make_trainer, true_loss


class NotesSettings(TrainerCallback):
    """Those of the process, at each step."""

    def __init__(self):
        self.seen = set()

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.add((torch.are_deterministic_algorithms_enabled(), logging.get_verbosity()))


def test_options_that_the_base_class_reads_act(tmp_path, monkeypatch):
    """A run with many of them at once, whose second loss is not finite."""
    timeouts, notes = [], NotesSettings()
    monkeypatch.setattr(distributed, "set_timeout", timeouts.append)
    options = {"log_level": "error", "log_level_replica": "error", "log_on_each_node": False, "run_name": "name"}
    options |= {"ddp_timeout": 600, "torch_empty_cache_steps": 1, "skip_memory_metrics": False, "project": "project"}
    options |= {"logging_steps": 3, "logging_first_step": True, "eval_on_start": True, "eval_delay": 3}
    options |= {"trackio_space_id": "space", "trackio_bucket_id": "bucket", "trackio_static_space_id": "static"}
    options |= {"include_num_input_tokens_seen": "all", "full_determinism": True, "logging_nan_inf_filter": True}
    trainer = make_trainer(tmp_path, Overflows, callbacks=[notes], **options)
    try:
        metrics = trainer.train().metrics
    finally:
        torch.use_deterministic_algorithms(False)
    steps = {
        name: [entry["step"] for entry in trainer.state.log_history if name in entry] for name in ("loss", "eval_loss")
    }
    assert steps == {"loss": [1, 3, 4], "eval_loss": [0, 4]}
    assert trainer.state.num_input_tokens_seen == 4 * 4 * 32
    assert any("mem_cpu" in name for name in metrics)
    assert notes.seen == {(True, logging.ERROR)} and timeouts == [600]
    assert all(map(math.isfinite, logged(trainer, "loss")))  # the filter leaves out the one that is not


def test_hyperparameters_reach_the_optimizer(tmp_path):
    """AdamW's and the schedule's."""
    options = {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-5, "weight_decay": 0.2, "max_grad_norm": 1e-3}
    options |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 5e-4}, "warmup_steps": 1}
    trainer = make_trainer(tmp_path, optim="adamw_torch", **options)
    trainer.train()
    group = trainer.optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-5, 0.2)
    assert logged(trainer, "learning_rate")[0] == 0.0
    assert logged(trainer, "learning_rate")[1:] == sorted(logged(trainer, "learning_rate")[1:], reverse=True)
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(5e-4)


def test_optimizers_that_take_arguments(tmp_path):
    """`optim_args` and `optim_target_modules` go to the optimizers of transformers that know them."""
    trainer = make_trainer(tmp_path, optim="adafactor", max_steps=1)
    trainer.train()
    assert type(trainer.optimizer.optimizer).__name__ == "Adafactor"
    with pytest.raises(ImportError, match="galore"):  # transformers' own answer where its package is missing
        make_trainer(tmp_path, optim="galore_adamw", optim_target_modules=["c_fc"], optim_args="rank=2").train()


class WithProjector(torch.optim.SGD):
    """Keeps an object in its state, as GaLore does."""

    def step(self, closure=None):
        """Also leave the object."""
        super().step(closure)
        self.state[self.param_groups[0]["params"][0]]["projector"] = object()


def test_an_optimizer_that_cannot_be_saved_is_refused_after_a_step(tmp_path):
    """Not at the first checkpoint, when the training until then would be lost; without checkpoints it may go on."""
    options = {"optimizer_cls_and_kwargs": (WithProjector, {"lr": 0.1})}
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=3, **options)
    for _ in range(2):  # in each training of it
        with pytest.raises(UserError, match=r"cannot store a object in a checkpoint.*--optim adamw_torch"):
            trainer.train()
        assert trainer.state.global_step == 0
    trainer = make_trainer(tmp_path, save_strategy="no", **options)
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_schedule_that_cannot_be_saved_is_refused_after_a_step(tmp_path):
    """One of the user's own may keep anything."""

    class WithObject(torch.optim.lr_scheduler.LambdaLR):
        def state_dict(self):
            return {**super().state_dict(), "object": object()}

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = make_trainer(tmp_path, model=model, optimizers=(optimizer, WithObject(optimizer, lambda step: 1.0)))
    with pytest.raises(UserError, match="what this learning-rate schedule keeps cannot be saved"):
        trainer.train()


def test_schedules_by_metric(tmp_path):
    """`reduce_lr_on_plateau` follows the evaluations."""
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5}}
    trainer = make_trainer(
        tmp_path, **options, eval_steps=1, compute_metrics=lambda p: {"my_loss": 1.0}, metric_for_best_model="my_loss"
    )
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 8)


def test_evaluation_options(tmp_path):
    """Parts kept apart, moved away early, gathered as objects; labels of another name; losses alone."""
    seen = []

    def look(prediction):
        seen.append(prediction.predictions)
        return {}

    expected = true_loss(make_model(), BLOCKS[:11])
    for options in (
        {"eval_do_concat_batches": False},
        {"eval_accumulation_steps": 1},
        {"eval_use_gather_object": True},
        {"label_names": ["labels"]},
    ):
        assert_exact(make_trainer(tmp_path, compute_metrics=look, **options).evaluate(), expected)
    assert [len(predictions) for predictions in seen] == [3, 11, 11, 11]
    assert_exact(make_trainer(tmp_path, compute_metrics=look, prediction_loss_only=True).evaluate(), expected)
    assert len(seen) == 4


def first_batch(trainer):
    """The numbers of its rows in `BLOCKS`."""
    batch = next(iter(trainer.get_train_dataloader()))
    numbers = {tuple(row["input_ids"].tolist()): number for number, row in enumerate(BLOCKS)}
    return [numbers[tuple(ids.tolist())] for ids in batch["input_ids"]]


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance", "sequential"])
def test_orders_of_foreign_data(tmp_path, strategy):
    """`train_sampling_strategy` with a column of lengths."""
    rows = [{name: row[name].tolist() for name in row} for row in BLOCKS]
    rows = [{**row, "n": 10 + number} for number, row in enumerate(rows)]
    trainer = make_trainer(
        tmp_path,
        train_dataset=datasets.Dataset.from_list(rows),
        train_sampling_strategy=strategy,
        length_column_name="n",
        max_steps=2,
        # transformers drops the column before it looks for it
        remove_unused_columns=False,
        data_collator=lambda rows: default_data_collator([{**row, "n": None} for row in rows]),
    )
    first = first_batch(trainer)
    assert first == [0, 1, 2, 3] if strategy == "sequential" else first != [0, 1, 2, 3]
    if strategy == "group_by_length":
        assert first[0] == 23  # that with the largest n comes first
    trainer.train()
    assert trainer.state.global_step == 2


def test_the_order_has_a_seed_of_its_own(tmp_path):
    """`data_seed`: other batches from the same initial weights, the same for the same number."""
    config = make_model().config
    trainers = [
        make_trainer(tmp_path, model_init=lambda: GPT2HFForCausalLM(config), **options)
        for options in ({}, {"data_seed": 7}, {"data_seed": 7}, {"seed": 7, "data_seed": 42})
    ]
    batches = [first_batch(trainer) for trainer in trainers]
    assert batches[0] != batches[1] == batches[2] and batches[3] == batches[0]
    first, second, _, fourth = (trainer.model.state_dict() for trainer in trainers)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], fourth[name]) for name in first)


@pytest.mark.parametrize("plain", [False, True])
def test_the_order_follows_a_seed_that_is_changed(tmp_path, plain):
    """One object of arguments for several seeds: `data_seed` stays what it was set to, nothing."""
    args = make_trainer(tmp_path, plain=plain).args
    batches = []
    for args.seed in (1, 2, 1):
        trainer = GPT2HFTrainer(make_model(), args, default_data_collator, BLOCKS, BLOCKS)
        batches.append(first_batch(trainer))
    assert batches[0] == batches[2] != batches[1]
    assert args.data_seed is None


def test_foreign_data_by_length_go_on_exactly(tmp_path):
    """The order of an epoch follows from its number: a run that is resumed in the second goes on in that order."""
    rows = [{"input_ids": row["input_ids"].tolist(), "labels": row["labels"].tolist(), "n": 32} for row in BLOCKS]
    options = {"train_dataset": datasets.Dataset.from_list(rows), "train_sampling_strategy": "group_by_length"}
    options |= {"length_column_name": "n", "max_steps": 12, "save_steps": 8, "eval_strategy": "no"}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    weights = [trainer.model.state_dict() for trainer in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


STREAMED = {"train_dataset": Stream(BLOCKS), "eval_strategy": "no", "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def streamed(request, tmp_path_factory):
    """Options with so many batches a step, and a whole run that has saved the steps which are resumed below."""
    folder, options = tmp_path_factory.mktemp("streamed"), STREAMED | {"gradient_accumulation_steps": request.param}
    whole = make_trainer(folder, max_steps=15, save_steps=1, save_total_limit=None, **options)
    whole.train()
    return options, whole


@pytest.mark.parametrize(("streamed", "step"), [(1, 4), (1, 6), (1, 8), (2, 2), (2, 5), (4, 2)], indirect=["streamed"])
def test_data_without_a_length_go_on_at_their_place(tmp_path, streamed, step):
    """In the pass and behind the batch that was the last, whatever the number of steps that was planned then."""
    options, whole = streamed
    options = options | {"save_steps": step}
    make_trainer(tmp_path / "short", max_steps=step, **options).train()
    for folder in (whole.args.output_dir, tmp_path / "short"):
        resumed = make_trainer(tmp_path / "resumed", max_steps=15, **options)
        resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{step}")
        assert logged(resumed, "loss") == logged(whole, "loss")
        weights = [trainer.model.state_dict() for trainer in (whole, resumed)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_accumulation_over_data_without_a_length(tmp_path, capsys):
    """What is left at the end of a pass is no step, and no part of the next one."""
    options = {"gradient_accumulation_steps": 4, "eval_strategy": "no", "save_strategy": "no", "learning_rate": 1e-9}
    trainer = make_trainer(tmp_path, train_dataset=Stream((BLOCKS * 2)[:36]), **options)
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx([true_loss(make_model(), BLOCKS)] * 4, abs=0.05)
    line = "the last batches of each pass are left out: 1 are no step of 4"
    assert capsys.readouterr().out.splitlines().count(line) == 1
    trainer = make_trainer(tmp_path, train_dataset=Stream(BLOCKS[:12]), **options)
    with pytest.raises(UserError, match=r"--gradient_accumulation_steps 4 is more than a pass .* has batches, 3"):
        trainer.train()


def test_epochs_of_data_without_a_length(tmp_path):
    """Nobody knows where a pass ends before it has: it is logged, evaluated and saved then, and at the very end."""
    epochs = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "epoch")
    trainer = make_trainer(tmp_path, train_dataset=Stream(BLOCKS), max_steps=15, **epochs)
    trainer.train()
    for key in ("loss", "eval_loss"):
        assert [entry["step"] for entry in trainer.state.log_history if key in entry] == [6, 12, 15]
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (6, 12, 15)}
    assert "checkpoint_epoch_1" not in folders.read_names(tmp_path)
    saved = (tmp_path / "checkpoint-6").stat().st_ino
    resumed = make_trainer(tmp_path, train_dataset=Stream(BLOCKS), max_steps=15, early_stopping_patience=1, **epochs)
    resumed.train(resume_from_checkpoint="checkpoint-6")  # where a pass ends: not evaluated and saved once more
    for key in ("loss", "eval_loss"):
        assert logged(resumed, key) == logged(trainer, key)
    assert (tmp_path / "checkpoint-6").stat().st_ino == saved


def test_data_longer_than_the_run_have_no_epoch(tmp_path, capsys):
    """The last step is not the end of one. Without logs, it is not logged either."""
    options = {"eval_strategy": "no", "logging_strategy": "no", "max_steps": 2}
    trainer = make_trainer(tmp_path, train_dataset=Stream(BLOCKS), **options)
    trainer.train()
    assert not folders.read_names(tmp_path) and "epoch 1" not in capsys.readouterr().out
    assert not logged(trainer, "loss")


def test_workers_that_stay_load_the_split_that_is_asked_for(tmp_path):
    """With persistent workers each split is scored, not once more the one before."""
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "max_steps": 2}
    trainer = make_trainer(tmp_path, **options)
    children = len(multiprocessing.active_children())
    for rows in (None, BLOCKS[11:], BLOCKS[:5], None):
        assert_exact(trainer.evaluate(rows), true_loss(make_model(), BLOCKS[:11] if rows is None else rows))
    loader = trainer.get_eval_dataloader()
    assert trainer.get_eval_dataloader() is loader  # its workers are kept for the next evaluation
    assert len(multiprocessing.active_children()) == children + 1  # and no others
    for _ in range(2):
        trainer.predict(BLOCKS[:5])
    trainer.evaluate()  # until then the callbacks have the loader of the prediction
    assert len(multiprocessing.active_children()) == children + 1


def test_workers_that_load_data(tmp_path):
    """Loader options change nothing of what is trained on."""
    alone = make_trainer(tmp_path / "alone", max_steps=2)
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 1}
    options |= {"dataloader_multiprocessing_context": "fork", "dataloader_in_order": False}
    options |= {"dataloader_pin_memory": False}
    workers = make_trainer(tmp_path / "workers", max_steps=2, **options)
    for trainer in (alone, workers):
        trainer.train()
    assert logged(alone, "loss") == logged(workers, "loss")
    loader = workers.get_train_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (1, 1, True)
    assert loader.multiprocessing_context.get_start_method() == "fork"
    assert (loader.in_order, loader.pin_memory) == (False, False)


def test_how_the_workers_of_a_stream_are_started(tmp_path):
    """As the option says. A stream resumes by the order of its workers, so that another one is refused."""
    options = {"train_dataset": streamed_lines(tmp_path, [9] * 40), "data_collator": FlatteningCollator()}
    options |= {"dataloader_num_workers": 1, "eval_strategy": "no"}
    trainer = make_trainer(tmp_path / "run", dataloader_multiprocessing_context="spawn", **options)
    loader = trainer.get_train_dataloader()
    assert loader.options["multiprocessing_context"] == "spawn"
    assert next(iter(loader))["input_ids"].numel()
    with pytest.raises(UserError, match="--dataloader_in_order false has no effect with --streaming"):
        make_trainer(tmp_path / "run", dataloader_in_order=False, **options)


def test_accelerator_options(tmp_path):
    """`accelerator_config` reaches accelerate, `debug` the model."""
    options = {"accelerator_config": {"split_batches": False, "non_blocking": True}, "debug": "underflow_overflow"}
    trainer = make_trainer(tmp_path, max_steps=1, **options)
    trainer.train()
    assert trainer.accelerator.non_blocking
    hooks = trainer.model._forward_hooks.values()
    assert any(isinstance(getattr(hook, "__self__", None), DebugUnderflowOverflow) for hook in hooks)


def test_options_of_copies_reach_accelerate(tmp_path):
    """Those that torch's DDP has."""
    options = {"ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 7, "ddp_static_graph": True}
    handler = make_trainer(tmp_path, ddp_broadcast_buffers=True, **options).accelerator.ddp_handler
    assert (handler.find_unused_parameters, handler.bucket_cap_mb, handler.static_graph) == (True, 7, True)
    assert handler.broadcast_buffers


@pytest.mark.parametrize("name", ["do_train", "do_eval"])
def test_what_a_script_asks_is_refused(tmp_path, name):
    """A run always trains, and evaluates unless it is told otherwise."""
    with pytest.raises(UserError, match=f"--{name} has no effect"):
        make_trainer(tmp_path, **{name: True})


def test_data_may_be_read_again_from_the_start(tmp_path):
    """`ignore_data_skip`: a resumed run begins the epoch anew."""
    whole = make_trainer(tmp_path, ignore_data_skip=True)
    whole.train()
    resumed = make_trainer(tmp_path, ignore_data_skip=True)
    resumed.train(resume_from_checkpoint="checkpoint-2")
    assert resumed.state.global_step == 4 and logged(resumed, "loss")[2:] != logged(whole, "loss")[2:]
    later = make_trainer(tmp_path)
    later.args.ignore_data_skip = True
    later.train(resume_from_checkpoint="checkpoint-2")
    assert later.args.ignore_data_skip and logged(later, "loss") == logged(resumed, "loss")


def test_checkpoints_without_the_optimizer(tmp_path):
    """`save_only_model`: smaller ones, from which nobody can go on."""
    trainer = make_trainer(tmp_path, save_only_model=True)
    trainer.train()
    assert not list(tmp_path.glob("checkpoint-*/optimizer*"))
    with pytest.raises(UserError, match="holds no optimizer"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


def test_an_incomplete_last_batch_may_be_left_out(tmp_path):
    """`dataloader_drop_last` in training; an evaluation scores everything all the same."""
    options = {"per_device_train_batch_size": 5, "dataloader_drop_last": True, "max_steps": -1, "num_train_epochs": 1}
    trainer = make_trainer(tmp_path, **options)
    trainer.train()
    assert trainer.state.global_step == len(BLOCKS) // 5
    assert_exact(trainer.evaluate(), true_loss(trainer.model, BLOCKS[:11]))


def test_what_a_device_does_not_have_is_refused(tmp_path):
    """TF32 on a CPU, by transformers itself."""
    with pytest.raises(ValueError, match="tf32"):
        make_trainer(tmp_path / "run", tf32=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bf16_full_eval", True),
        ("fp16_full_eval", True),
        ("liger_kernel_config", {"rope": True}),
        ("hub_always_push", True),
        ("parallelism_config", object()),
    ],
)
def test_what_nobody_acts_on_is_refused(tmp_path, plain, name, value):
    """One line, before anything is written; the same for transformers' own arguments."""
    with pytest.raises(UserError, match=f"--{name} has no effect") as caught:
        make_trainer(tmp_path / "run", plain=plain, **{name: value})
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"muon_learning_rate": 0.02}, "--muon_learning_rate has no effect with --optim adamw_torch_fused"),
        ({"optim": "sgd", "adam_beta2": 0.9}, "--adam_beta2 has no effect with --optim sgd; leave it out"),
        ({"distill_alpha": 0.9}, r"--distill_alpha has no effect without teachers; .* teachers=\[\.\.\.\]$"),
    ],
    ids=str,
)
def test_what_does_nothing_beside_another_option_is_refused(tmp_path, options, message):
    """As on a command line; with the optimizer, or the teacher, that reads it, it acts."""
    with pytest.raises(UserError, match=f"^{message}"):
        make_trainer(tmp_path, **options)
    acting = {"optim": "muon" if "muon_learning_rate" in options else "adamw_torch_fused"}
    acting |= {"teachers": [make_model()]} if "distill_alpha" in options else {}
    make_trainer(tmp_path, **{**options, **acting})


HOOKS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


def test_every_hook_is_called(tmp_path):
    """With the control object, in the order of a run."""
    calls = []
    hooks = {name: lambda self, args, state, control, name=name, **kwargs: calls.append(name) for name in HOOKS}
    recorder = type("Recorder", (TrainerCallback,), hooks)
    trainer = make_trainer(tmp_path, callbacks=[recorder], gradient_accumulation_steps=2)
    trainer.train()
    trainer.predict(BLOCKS[:3])
    assert set(HOOKS) - set(calls) == {"on_push_begin"}
    assert calls[0] == "on_init_end" and calls[1] == "on_train_begin" and calls.count("on_train_end") == 1
    assert calls.count("on_step_end") == calls.count("on_optimizer_step") == calls.count("on_substep_end") == 4
    assert calls.index("on_evaluate") < calls.index("on_save")


def test_activations_that_are_computed_again_change_nothing(tmp_path):
    """`activation_checkpointing` and its arguments, under the older names too."""
    plain = make_trainer(tmp_path, max_steps=2)
    plain.train()
    arguments = {"activation_checkpointing": "activation_checkpointing_kwargs"}
    arguments["gradient_checkpointing"] = "gradient_checkpointing_kwargs"
    for name, of_name in arguments.items():
        if of_name not in names_of(GPT2HFTrainingArguments):  # older releases of transformers
            of_name = arguments["gradient_checkpointing"]
        trainer = make_trainer(tmp_path, max_steps=2, **{name: True, of_name: {"use_reentrant": False}})
        trainer.train()
        assert trainer.model.is_gradient_checkpointing
        assert logged(trainer, "loss") == pytest.approx(logged(plain, "loss"), abs=1e-6)
