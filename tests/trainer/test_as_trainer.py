"""What works with transformers' Trainer and GPT-2 works with `GPT2HFTrainer`."""

import copy
import dataclasses
import gc
import math
import pickle
import shutil
import weakref
from collections import Counter as Counted
from types import SimpleNamespace

import pytest
import torch
from accelerate import data_loader
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    DataCollatorForLanguageModeling,
    EarlyStoppingCallback,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback
from transformers.trainer_utils import HPSearchBackend

from gpt2_hf import GPT2HFForCausalLM, GPT2HFTrainer, GPT2HFTrainingArguments, load_tokenizer
from gpt2_hf.checkpoints import folders, manifest
from gpt2_hf.checkpoints.state_files import load_state, save_state
from gpt2_hf.commands.model_loading import load_trained
from gpt2_hf.data import FlatteningCollator
from gpt2_hf.errors import TrainingDivergedError, UserError
from gpt2_hf.options.training_arguments import with_own_fields
from gpt2_hf.runtime.stopwatch import Stopwatch
from gpt2_hf.trainer.callbacks import ContinuousTensorBoardCallback
from gpt2_hf.trainer.callbacks import ProgressCallback as TerminalCallback
from gpt2_hf.trainer.gpt2_trainer import _Asking, _objective
from gpt2_hf.trainer.job_context import JobContext

from ..conftest import read_json
from ..data_fixtures import streamed_lines
from .helpers import (
    BLOCKS,
    COLLATORS,
    LossOfOutputs,
    Overflows,
    assert_exact,
    logged,
    make_model,
    make_trainer,
    settings,
    true_loss,
)


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---- arguments ----


def test_plain_arguments(tmp_path):
    """transformers' TrainingArguments train, evaluate, save and resume, without a time budget."""
    trainer = make_trainer(tmp_path / "whole", plain=True, do_train=True, dataloader_drop_last=True)
    assert isinstance(trainer.args, GPT2HFTrainingArguments) and trainer.args.max_training_hours is None
    trainer.train()
    assert_exact(trainer.evaluate(), true_loss(trainer.model, BLOCKS[:11]))
    assert (tmp_path / "whole" / "checkpoint-4" / "manifest.json").is_file()
    resumed = make_trainer(tmp_path / "resumed", plain=True, restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(weights_of(resumed.model), weights_of(trainer.model))


def test_results_of_a_resumed_training_are_those_of_its_own_steps(tmp_path):
    """The mean loss, what was not yet logged included, and the speed."""
    options = {"max_steps": 5, "save_steps": 3, "eval_strategy": "no"}
    whole = make_trainer(tmp_path, **options)
    whole.train()
    output = make_trainer(tmp_path, logging_steps=2, **options).train(resume_from_checkpoint="checkpoint-3")
    assert output.training_loss == pytest.approx(sum(logged(whole, "loss")[3:]) / 2, abs=1e-3)
    metrics = output.metrics
    assert metrics["train_loss"] == output.training_loss
    for name, number in (("train_steps_per_second", 2), ("train_samples_per_second", 2 * 4)):
        assert metrics[name] * metrics["train_runtime"] == pytest.approx(number, rel=0.1)


def test_batches_are_copied_unseen_after_a_resume_too(tmp_path, monkeypatch):
    """The rest of an epoch has a loader of its own; it does not make the host wait for each batch."""
    waits = []
    send = data_loader.send_to_device

    def note(batch, device, non_blocking=False, **options):
        waits.append(not non_blocking)
        return send(batch, device, non_blocking=non_blocking, **options)

    monkeypatch.setattr(data_loader, "send_to_device", note)
    options = {"accelerator_config": {"non_blocking": True}, "eval_strategy": "no"}
    make_trainer(tmp_path, **options).train()
    make_trainer(tmp_path, **options).train(resume_from_checkpoint="checkpoint-2")
    assert len(waits) >= 4 + 2 and not any(waits)


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_plain_arguments_act_where_transformers_does(tmp_path, strategy):
    """No evaluation or checkpoint at the end of an epoch that was not asked for, and no more kept than the limit."""
    options = {"eval_strategy": strategy, "save_strategy": strategy, "eval_steps": 4, "save_steps": 4}
    options |= {"max_steps": -1, "num_train_epochs": 3, "save_total_limit": 1, "train_dataset": BLOCKS}
    trainer = make_trainer(tmp_path, plain=True, **options)
    trainer.train()
    evaluated = {"steps": [4, 8, 12, 16, 18], "epoch": [6, 12, 18]}  # six steps an epoch
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == evaluated[strategy]
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert "checkpoint-18" in kept and kept <= {"checkpoint-18", f"checkpoint-{trainer.state.best_global_step}"}


@pytest.mark.parametrize("plain", [True, False])
def test_a_strategy_of_the_best_saves_the_last_step_too(tmp_path, plain):
    """A longer training can go on from there; only the best is saved before it."""
    values = iter([1.0, 2.0, 2.0, 2.0])
    options = {"save_strategy": "best", "metric_for_best_model": "my_loss", "eval_steps": 1}
    trainer = make_trainer(tmp_path, plain=plain, compute_metrics=lambda p: {"my_loss": next(values)}, **options)
    trainer.train()
    assert checkpoints_in(tmp_path) == ["checkpoint-1", "checkpoint-4"]


def test_plain_arguments_save_each_best_too(tmp_path):
    """With a metric for the best model, between those checkpoints that transformers saves."""
    options = {"eval_steps": 1, "save_steps": 4, "lr_scheduler_type": "constant"}
    for metric, expected in ((None, [4]), ("loss", [1, 2, 3, 4])):
        trainer = make_trainer(tmp_path / str(metric), plain=True, metric_for_best_model=metric, **options)
        trainer.train()
        assert logged(trainer, "eval_loss") == sorted(logged(trainer, "eval_loss"), reverse=True)
        assert [folders.step_of(path) for path in folders.list_checkpoints(tmp_path / str(metric))] == expected


def test_a_run_that_was_moved_ends_with_its_best_model(tmp_path):
    """The state has the path of the best checkpoint from before."""
    options = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    whole = make_trainer(tmp_path / "before", **options)
    whole.train()
    assert whole.state.best_global_step == 2
    (tmp_path / "before").rename(tmp_path / "after")
    moved = make_trainer(tmp_path / "after", **options)
    moved.train(resume_from_checkpoint=True)
    assert torch.equal(weights_of(moved.model), weights_of(whole.model))


def test_a_stream_goes_on_with_as_many_processes(tmp_path):
    """It was divided among them, so another number is refused, where it would begin with the first text again."""
    options = {"data_collator": FlatteningCollator(), "eval_strategy": "no", "logging_steps": 2}
    stream = streamed_lines(tmp_path, [9] * 400)
    make_trainer(tmp_path / "run", train_dataset=stream, **options).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    state = load_state(checkpoint / "process_state.safetensors")
    state["stream"]["world_size"] = 2
    for rank in range(2):
        save_state(state, checkpoint / f"process_state_{rank}.safetensors")
    (checkpoint / "process_state.safetensors").unlink()
    (checkpoint / "manifest.json").unlink()
    manifest.write(checkpoint)
    with pytest.raises(UserError, match="a streamed run resumes with as many processes as before, 2, not 1"):
        make_trainer(tmp_path / "run", train_dataset=stream, **options).train(resume_from_checkpoint=str(checkpoint))


def test_a_stream_leaves_the_arguments_as_they_were(tmp_path):
    """The next Trainer that has them may have data of which a resumed run must skip what was seen."""
    options = {"data_collator": FlatteningCollator(), "eval_strategy": "no", "max_steps": 1}
    trainer = make_trainer(tmp_path / "run", train_dataset=streamed_lines(tmp_path, [9] * 400), **options)
    trainer.train()
    assert trainer.args.ignore_data_skip is False


@pytest.mark.parametrize(
    "options", [{}, {"ema_decay": 0.9}, {"max_training_hours": 1.0, "schedule_by_time": True}], ids=str
)
def test_a_trainer_is_gone_with_its_last_reference(tmp_path, options):
    """And its model with it: `del trainer` makes room on a GPU, without a look for cycles."""
    trainer = make_trainer(tmp_path, lr_scheduler_type="cosine", **options)
    trainer.train()
    references = [weakref.ref(each) for each in (trainer, trainer.model, trainer.optimizer.optimizer)]
    gc.disable()
    try:
        del trainer
        assert [reference() for reference in references] == [None, None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize(("loss", "is_best"), [(2.9, True), (3.0, False), (3.1, False), (math.nan, False)])
def test_only_a_lower_loss_is_a_new_best(tmp_path, loss, is_best):
    """And is saved; NaN never is."""
    trainer = make_trainer(tmp_path)
    trainer.state.best_metric = 3.0
    assert trainer._determine_best_metric({"eval_loss": loss}, None) == is_best
    assert trainer.control.should_save == is_best


class Answers:
    """What a callback asks, in place of a Trainer."""

    def __init__(self):
        self.asking, self.number = _Asking(self, "answer"), 1

    def answer(self):
        return self.number


def test_a_copy_of_a_trainer_asks_the_copy():
    """Also one that was sent to another process, as Ray's search does."""
    first = Answers()
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        other.number = 2
        assert (first.asking(), other.asking()) == (1, 2)


def test_no_arguments(tmp_path, monkeypatch):
    """Without any, transformers' defaults hold, in its folder."""
    monkeypatch.chdir(tmp_path)
    trainer = GPT2HFTrainer(make_model(), train_dataset=BLOCKS)
    assert trainer.args.output_dir == "tmp_trainer" and trainer.args.num_train_epochs == 3.0
    assert trainer.remaining_work().evaluation == 0.0


@dataclasses.dataclass
class TheirArguments(TrainingArguments):
    """A subclass of the user's own."""

    weight_of_loss: float = 2.0

    def half(self):
        return self.weight_of_loss / 2


def test_arguments_of_a_subclass_keep_what_they_have(tmp_path):
    """Fields and methods stay, and a later change of the arguments is seen."""
    args = TheirArguments(str(tmp_path), **settings(weight_of_loss=3.0))
    taken = with_own_fields(args)
    assert isinstance(taken, TheirArguments) and taken.half() == 1.5 and "weight_of_loss" in taken.to_dict()
    args.learning_rate = 0.5
    assert taken.learning_rate == 0.5 and with_own_fields(taken) is taken


def test_plain_arguments_that_cannot_be_followed_are_refused(tmp_path):
    """One line each, before anything is written."""
    for name in ("use_liger_kernel", "enable_jit_checkpoint", "auto_find_batch_size", "save_on_each_node"):
        with pytest.raises(UserError, match=f"--{name} has no effect"):
            make_trainer(tmp_path / "run", plain=True, **{name: True})
    with pytest.raises(UserError, match="a Trainer alone handles no signals"):
        make_trainer(tmp_path / "run", plain=True, enable_jit_checkpoint=True)
    with pytest.raises(UserError, match="--push_to_hub uploads nothing while it trains"):
        make_trainer(tmp_path / "run", plain=True, push_to_hub=True)
    with pytest.raises(UserError, match="fp16 needs a CUDA device"):
        make_trainer(tmp_path / "run", plain=True, fp16=True)
    assert not (tmp_path / "run").exists()


def test_what_is_left_out_is_said(tmp_path, monkeypatch, capsys):
    """A compiler that is not there, and GPUs that one process does not use; by the job if there is one."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    make_trainer(tmp_path, torch_compile=True)
    assert "--torch_compile is left out: there is no C++ compiler" in capsys.readouterr().out
    args = TrainingArguments(str(tmp_path), **settings())
    args._n_gpu = 2  # as the base class has it where there are two
    GPT2HFTrainer(make_model(), args, train_dataset=BLOCKS, eval_dataset=BLOCKS)
    line = "one of 2 GPUs is used; all of them: torchrun --nproc_per_node 2 ..."
    assert capsys.readouterr().out.splitlines() == [line] and args.n_gpu == 1
    args = GPT2HFTrainingArguments(str(tmp_path), torch_compile=True, use_cpu=True, report_to=[])
    GPT2HFTrainer(make_model(), args, train_dataset=BLOCKS, eval_dataset=BLOCKS, job=JobContext(Stopwatch()))
    assert "left out" not in capsys.readouterr().out


def test_a_chosen_precision_is_said(tmp_path, capsys):
    """With the reason; not one that was asked for, nor in a job, which says it itself."""
    for precision, job in (("fp32", None), ("auto", JobContext(Stopwatch())), ("auto", None)):
        assert "precision" not in capsys.readouterr().out
        trainer = make_trainer(tmp_path, precision=precision, job=job)
    assert capsys.readouterr().out == f"{trainer.args.resolved_precision}\n"


@pytest.mark.parametrize(("launched", "name"), [("bf16", "bf16"), ("no", "fp32")])
def test_plain_arguments_have_the_precision_of_the_launcher(tmp_path, monkeypatch, launched, name):
    """`accelerate launch --mixed_precision`, where they have none of their own."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert with_own_fields(TrainingArguments(str(tmp_path), use_cpu=True)).resolved_precision.name == name
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match="--mixed_precision fp8 of accelerate is not supported"):
        with_own_fields(TrainingArguments(str(tmp_path), use_cpu=True))


def test_other_engines_are_refused_for_plain_arguments_too(tmp_path, monkeypatch):
    """DeepSpeed, by argument or by accelerate's config file; and a folder that cannot be written."""
    args = TrainingArguments(str(tmp_path / "run"), **settings())
    args.deepspeed = {"zero_optimization": {"stage": 3}}  # without its package only the made object can have it
    with pytest.raises(UserError, match="--deepspeed is not supported"):
        with_own_fields(args)
    args.deepspeed = None
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="--deepspeed is not supported"):
        with_own_fields(args)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    args.output_dir = str(tmp_path / "caf\udce9")
    with pytest.raises(UserError, match="is not UTF-8"):
        with_own_fields(args)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["perplexity", "eval_perplexity"])
def test_plain_arguments_keep_the_lowest_perplexity(tmp_path, metric):
    """The base class takes every metric but a loss for one that should be high."""
    options = {"metric_for_best_model": metric, "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    trainer = make_trainer(tmp_path, plain=True, lr_scheduler_type="constant", **options)
    trainer.train()
    perplexities = logged(trainer, "eval_perplexity")
    assert perplexities == sorted(perplexities, reverse=True)
    assert trainer.state.best_global_step == 4
    assert trainer.evaluate()["eval_perplexity"] == pytest.approx(perplexities[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neftune_noise_alpha": 5.0}, "--neftune_noise_alpha goes by the length of a row"),
        ({"include_num_input_tokens_seen": "non_padding"}, "--include_num_input_tokens_seen non_padding needs"),
    ],
)
def test_what_goes_by_the_length_of_a_row_is_refused_without_padding(tmp_path, options, message):
    """A row of `padding_free` holds many samples."""
    with pytest.raises(UserError, match=message):
        make_trainer(tmp_path / "run", data_collator=COLLATORS["padding_free"], **options)
    assert not (tmp_path / "run").exists()


def test_noise_on_embeddings(tmp_path):
    """NEFTune adds noise in training alone, and a training that is broken off leaves none behind."""

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    trainer = make_trainer(tmp_path, neftune_noise_alpha=50.0, max_steps=2, callbacks=[Break()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not trainer.is_in_train and not trainer.model.get_input_embeddings()._forward_hooks
    trainer.remove_callback(Break)
    trainer.train()
    plain = make_trainer(tmp_path, max_steps=2)
    plain.train()
    assert abs(logged(trainer, "loss")[0] - logged(plain, "loss")[0]) > 0.01


# ---- data and models ----


def test_a_dataset_with_its_text_column(tmp_path):
    """The twenty lines of a tutorial: text column, collator with a tokenizer, remove_unused_columns left alone."""
    datasets = pytest.importorskip("datasets")
    tokenizer = load_tokenizer()
    rows = datasets.Dataset.from_dict({"text": [f"The number {i} comes before {i + 1}." for i in range(16)]})
    rows = rows.map(lambda batch: tokenizer(batch["text"]), batched=True)
    model = make_model().__class__(make_model().config.__class__(vocab_size=50257, n_embd=16, n_layer=1, n_head=1))
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    options = {"data_collator": collator, "train_dataset": rows, "eval_dataset": rows, "max_steps": 2}
    trainer = make_trainer(tmp_path, model=model, **options)
    trainer.train()
    assert len(logged(trainer, "eval_loss")) == 1
    assert load_trained(str(tmp_path / "best_model"))[1].pad_token is not None


def test_stock_gpt2_is_trained_and_evaluated_exactly(tmp_path):
    """The same losses as this package's model, though the stock class's name hides that its loss shifts labels."""
    options = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.01}
    trainers = [make_trainer(tmp_path / which, model=make_model(which), **options) for which in ("ours", "stock")]
    for trainer in trainers:
        trainer.train()
        assert_exact(trainer.evaluate(), true_loss(trainer.model, BLOCKS[:11]))
    for name in ("loss", "eval_loss", "grad_norm"):
        ours, stock = (logged(trainer, name) for trainer in trainers)
        assert ours == pytest.approx(stock, abs=1e-5)
    assert trainers[1].model.config.use_cache is False


@pytest.mark.parametrize("collator", ["padded", "padding_free"])
def test_stock_gpt2_is_refused_with_a_collator_that_it_does_not_understand(tmp_path, collator):
    """Before the first step, which would find no loss; a loss of the user's own may read them."""
    options = {"model": make_model("stock"), "data_collator": COLLATORS[collator]}
    with pytest.raises(UserError, match="give shift_labels, which GPT2LMHeadModel does not read; use a collator of"):
        make_trainer(tmp_path, **options)
    make_trainer(tmp_path, LossOfOutputs, **options)


@pytest.mark.parametrize(
    "kind", [GPT2ForSequenceClassification, GPT2ForTokenClassification, T5ForConditionalGeneration]
)
def test_a_model_that_does_not_predict_the_next_token_is_refused(tmp_path, kind):
    """Its labels are no next tokens, by whose number losses are divided; a subclass of it too."""
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 97}
    sizes |= {"num_layers": 1, "d_model": 8, "num_heads": 1, "d_kv": 8, "d_ff": 8}
    model = kind(kind.config_class(**sizes))
    with pytest.raises(
        UserError, match=f"a {kind.__name__} does not predict the next token.*; use transformers.Trainer"
    ):
        make_trainer(tmp_path, model=model)
    model.__class__ = type("Mine", (kind,), {})
    with pytest.raises(UserError, match="a Mine does not predict the next token"):
        make_trainer(tmp_path, model=model)


def test_an_adapter(tmp_path):
    """best_model/ holds the adapter and loads with peft; resumed equals uninterrupted; our commands name it."""
    peft = pytest.importorskip("peft")
    make_model().save_pretrained(tmp_path / "base")

    def adapted():
        torch.manual_seed(1)
        base = make_model().from_pretrained(tmp_path / "base")
        config = peft.LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
        return peft.get_peft_model(base, config)

    whole = make_trainer(tmp_path / "whole", model=adapted(), load_best_model_at_end=True)
    whole.train()
    best = tmp_path / "whole" / "best_model"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in best.iterdir()}
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(best)
    assert true_loss(loaded, BLOCKS[:11]) == pytest.approx(whole.state.best_metric, abs=1e-5)
    resumed = make_trainer(tmp_path / "whole", model=adapted())
    resumed.train(resume_from_checkpoint="checkpoint_step_2")
    assert torch.equal(weights_of(resumed.model), weights_of(whole.model))
    with pytest.raises(UserError, match="is an adapter, not a model; merge it first") as caught:
        load_trained(str(best))
    assert "\n" not in str(caught.value)


def test_an_adapter_with_a_name_of_its_own(tmp_path):
    """It lies in a folder of that name, in `best_model` too, which each new best replaces."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    trainer = make_trainer(tmp_path, model=peft.get_peft_model(make_model(), config, adapter_name="style"))
    trainer.train()
    assert trainer.state.best_global_step == 4 and manifest.damage(tmp_path / "best_model") is None
    best, last = (tmp_path / name / "style" for name in ("best_model", "checkpoint-4"))
    assert (best / "adapter_config.json").is_file()
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (best, last)]
    assert weights[0] and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_the_best_of_an_adapter_with_a_name_of_its_own(tmp_path):
    """It is in the model at the end, and the moving average not in its place; one that is gone is named."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    options = {"load_best_model_at_end": True, "greater_is_better": True, "ema_decay": 0.5, "learning_rate": 0.1}
    trainer = make_trainer(tmp_path, model=peft.get_peft_model(make_model(), config, "style"), **options)
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert true_loss(trainer.model, BLOCKS[:11]) == pytest.approx(trainer.state.best_metric, abs=1e-5)
    trainer.state.best_model_checkpoint = str(tmp_path / "gone")
    with pytest.raises(UserError, match=r"load_best_model_at_end: .*gone holds no weights"):
        trainer._load_best_model()


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"])
def test_adapters_that_begin_each_row_score_its_first_token(tmp_path, kind):
    """peft's virtual tokens predict it; with prefix tuning, which has keys and values in their place, nothing does."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = make_model("stock")
    model = peft.get_peft_model(base, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    rows = [{"input_ids": row["input_ids"][:20], "labels": row["labels"][:20]} for row in BLOCKS]
    trainer = make_trainer(tmp_path, model=model, train_dataset=rows, eval_dataset=rows[:11], max_steps=1)
    batch = {name: torch.stack([row[name] for row in rows[:11]]) for name in rows[0]}
    with torch.no_grad():
        expected = model(**batch).loss.item()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected, abs=1e-5)
    assert metrics["eval_tokens"] == 11 * (19 if kind == "PrefixTuningConfig" else 20)
    _, num_items = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    assert num_items == metrics["eval_tokens"]


@pytest.mark.parametrize("collator", ["padded", "padding_free"])
def test_such_adapters_need_a_collator_of_transformers(tmp_path, collator):
    """peft puts its tokens before the labels of a row, and not before `shift_labels`."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make_model(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(UserError, match="virtual tokens; use a collator of"):
        make_trainer(tmp_path, model=model, data_collator=COLLATORS[collator])


class LossOfLogits(Trainer):
    """A tutorial's subclass of transformers' own Trainer."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, return_logits=True)
        logits, labels = outputs.logits[:, :-1], inputs["labels"][:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return (loss, outputs) if return_outputs else loss


def test_a_loss_of_logits_under_transformers_own_trainer(tmp_path):
    """`return_logits=True` gives it the logits that the model leaves out in training."""
    args = TrainingArguments(str(tmp_path), **settings(max_steps=1, train_sampling_strategy="sequential"))
    trainer = LossOfLogits(make_model(), args, None, BLOCKS, BLOCKS)
    trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(true_loss(make_model(), BLOCKS[:4]), abs=1e-5)


class Bigram(torch.nn.Module):
    """A model that is no PreTrainedModel, with a tied head and a method for its users."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(97, 8)
        self.head = torch.nn.Linear(8, 97, bias=False)
        self.head.weight = self.embedding.weight
        self.num_parameters = 97 * 8

    def forward(self, input_ids, labels=None):
        logits = self.head(self.embedding(input_ids))
        return {"loss": torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}

    def save_pretrained(self, path):
        raise AssertionError("is not transformers'")


def test_a_plain_module_is_saved_and_resumed(tmp_path):
    """As transformers saves it: model.safetensors, in which what is shared stands once."""
    whole = make_trainer(tmp_path, model=Bigram(), load_best_model_at_end=True)
    whole.train()
    assert len(load_file(tmp_path / "best_model" / "model.safetensors")) == 1
    resumed = make_trainer(tmp_path, model=Bigram())
    resumed.train(resume_from_checkpoint="checkpoint-2")
    best = make_trainer(tmp_path / "best", model=Bigram())
    best.load_weights(tmp_path / f"checkpoint-{resumed.state.best_global_step}")
    assert torch.equal(weights_of(best.model), weights_of(whole.model))
    assert len(logged(whole, "tokens_per_second")) == 3 and min(logged(whole, "tokens_per_second")) > 0
    with pytest.raises(UserError, match="the checkpoint is of another model: it has no"):
        resumed._issue_warnings_after_load(resumed.model.load_state_dict({}, strict=False))
    with pytest.raises(UserError, match="--optim muon needs a PreTrainedModel, to know its head, which Bigram is not"):
        make_trainer(tmp_path, model=Bigram(), optim="muon")


class OfTwoArguments(GPT2HFForCausalLM):
    """A subclass with a `forward` of its own, which takes what it names."""

    def forward(self, input_ids, labels=None):
        return super().forward(input_ids, labels=labels)


def test_a_model_that_takes_what_it_names(tmp_path):
    """It is evaluated and trained, with a loss of the user's own too, without the columns that it does not take."""
    datasets = pytest.importorskip("datasets")
    rows = [{name: values.tolist() for name, values in row.items()} for row in BLOCKS]
    columns = datasets.Dataset.from_list([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows])
    for kind in (GPT2HFTrainer, LossOfOutputs):
        model = make_model()
        model.__class__ = OfTwoArguments
        # not saved: transformers would copy this file of tests
        options = {"train_dataset": columns, "eval_dataset": columns, "save_strategy": "no"}
        trainer = make_trainer(tmp_path, kind, model, **options)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(true_loss(make_model(), BLOCKS), abs=1e-5)
        trainer.train()
        assert len(logged(trainer, "loss")) == 4 and len(logged(trainer, "eval_loss")) == 2
    for option, given in (("--label_smoothing_factor", {"label_smoothing_factor": 0.1}), ("teachers", {})):
        given |= {"teachers": [make_model()]} if option == "teachers" else {}
        with pytest.raises(UserError, match=rf"^{option}: OfTwoArguments.forward takes no .*; give it \*\*kwargs"):
            make_trainer(tmp_path, model=model, **given)


class OfTuples(GPT2HFTrainer):
    """A subclass for batches that are no mappings."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids, labels = inputs
        return model(input_ids=ids, labels=labels).loss


def test_batches_that_are_tuples(tmp_path):
    """With a collator and a loss for them."""

    def collate(rows):
        return tuple(torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))

    trainer = make_trainer(tmp_path, OfTuples, data_collator=collate, eval_strategy="no", save_strategy="no")
    trainer.train()
    assert len(logged(trainer, "loss")) == 4 and not logged(trainer, "tokens_per_second")


def test_a_saved_subclass_names_no_source_that_is_not_there(tmp_path, monkeypatch):
    """That of one from a notebook is not saved, and this package's model is not beside it."""
    monkeypatch.setattr(OfTwoArguments, "__module__", "__main__")
    model = make_model()
    for kind, expected in ((type(model), {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}), (OfTwoArguments, None)):
        model.__class__ = kind
        model.save_pretrained(tmp_path / kind.__name__)
        names = read_json(tmp_path / kind.__name__ / "config.json")["auto_map"]
        there = {path.name for path in (tmp_path / kind.__name__).iterdir()}
        assert {f"{name.partition('.')[0]}.py" for name in names.values()} <= there
        assert names.keys() == (expected or {"AutoConfig"})


def test_frozen_layers_stay_as_they_are(tmp_path):
    """With frozen embeddings, AdamW and Muon train the rest."""
    for optim in ("adamw_torch", "muon"):
        model = make_model()
        before = copy.deepcopy(model)
        model.transformer.wte.weight.requires_grad_(False)
        model.transformer.h[0].requires_grad_(False)
        make_trainer(tmp_path / optim, model=model, optim=optim).train()
        assert torch.equal(model.transformer.wte.weight, before.transformer.wte.weight)
        assert torch.equal(model.transformer.h[0].mlp.c_fc.weight, before.transformer.h[0].mlp.c_fc.weight)
        assert not torch.equal(model.transformer.h[1].mlp.c_fc.weight, before.transformer.h[1].mlp.c_fc.weight)


# ---- optimizers ----


def own_optimizer(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)


def test_own_optimizer_and_schedule(tmp_path):
    """`optimizers=(optimizer, schedule)` are used, saved and resumed exactly."""
    models = [make_model(), make_model()]
    whole, resumed = (make_trainer(tmp_path / "run", model=model, optimizers=own_optimizer(model)) for model in models)
    whole.train()
    assert 0 < logged(whole, "learning_rate")[1] != logged(whole, "learning_rate")[2]
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert torch.equal(weights_of(models[0]), weights_of(models[1]))
    assert logged(resumed, "learning_rate") == logged(whole, "learning_rate")
    with pytest.raises(UserError, match="--schedule_by_time has no effect beside a scheduler"):
        options = {"schedule_by_time": True, "max_training_hours": 1.0, "lr_scheduler_type": "cosine"}
        make_trainer(tmp_path, model=models[0], optimizers=own_optimizer(models[0]), **options)


@pytest.mark.parametrize(
    ("before", "after"), [("adamw_torch", "adamw_torch_fused"), ("adamw_torch_fused", "adamw_torch")]
)
def test_an_optimizer_computes_as_it_was_made(tmp_path, before, after):
    """Fused or not, whatever the one of the checkpoint was; bad steps are left out on the device by one that can."""
    whole = make_trainer(tmp_path, optim=before)
    whole.train()
    resumed = make_trainer(tmp_path, optim=after)
    resumed.non_finite_guard.deferred = True
    resumed.train(resume_from_checkpoint="checkpoint-2")
    assert [bool(group["fused"]) for group in resumed.optimizer.param_groups] == [after == "adamw_torch_fused"] * 2
    assert logged(resumed, "loss") == pytest.approx(logged(whole, "loss"), abs=1e-5)


def test_own_optimizer_class(tmp_path):
    """`optimizer_cls_and_kwargs` wins over --optim."""
    trainer = make_trainer(tmp_path, optim="muon", optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}))
    trainer.train()
    assert type(trainer.optimizer.optimizer) is torch.optim.SGD


# ---- train() ----


def test_the_budget_counts_from_train(tmp_path):
    """A notebook: what passes between making the Trainer and `train()` is not the run's time."""
    trainer = make_trainer(tmp_path, max_training_hours=60 / 3600)
    trainer.watch._started -= 3600.0  # an hour goes by
    assert trainer.watch.elapsed > 3600
    trainer.train()
    assert trainer.state.global_step == 4 and not trainer.time_budget.expired


def test_arguments_that_are_changed_after_the_trainer_was_made(tmp_path, capsys):
    """Before `train()` or between two: the budget is the new one, and what was read once is refused."""
    trainer = make_trainer(tmp_path, max_training_hours=5.0)
    trainer.args.max_training_hours = 1e-7
    trainer.train()
    assert trainer.time_budget.expired and trainer.state.global_step == 1
    assert "budget 0:00:00 left" in capsys.readouterr().out
    trainer.args.max_training_hours = None
    trainer.train()
    assert not trainer.time_budget.expired and trainer.state.global_step == 4
    trainer.args.schedule_by_time = True
    with pytest.raises(UserError, match="--schedule_by_time needs --max_training_hours"):
        trainer.train()
    trainer.args.early_stopping_patience = 1
    with pytest.raises(UserError, match=r"^train: early_stopping_patience is read when a Trainer is made; make one"):
        trainer.train()


def test_a_schedule_by_time_that_has_ended_is_not_resumed(tmp_path):
    """All of the new steps would have a learning rate of 0."""
    options = {"schedule_by_time": True, "max_training_hours": 1.0}
    make_trainer(tmp_path, **options).train()
    with pytest.raises(UserError, match=r"schedule_by_time of .*checkpoint-4 has ended"):
        make_trainer(tmp_path, max_steps=8, **options).train(resume_from_checkpoint=True)
    resumed = make_trainer(tmp_path, max_steps=8)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8


def test_a_loss_that_is_not_finite_is_in_one_log(tmp_path):
    """Neither in those after it, nor in those of a run that is resumed from there."""
    trainer, resumed = make_trainer(tmp_path, Overflows), make_trainer(tmp_path)
    trainer.train()
    resumed.train(resume_from_checkpoint="checkpoint-2")
    for each in (trainer, resumed):
        assert [math.isfinite(loss) for loss in logged(each, "loss")] == [True, False, True, True]


def test_train_twice(tmp_path):
    """The second call trains on from the weights there are, with nothing of the first but the optimizer."""
    from gpt2_hf.trainer.callbacks import LossSpikes

    trainer = make_trainer(tmp_path, max_training_hours=1.0, early_stopping_patience=3)
    trainer.train()
    trainer.time_budget.expired = trainer._owes_evaluation = True
    trainer.non_finite_guard._bad_step = torch.tensor(3)
    trainer._loss_spikes.ordinary, first = -1.0, logged(trainer, "loss")
    trainer.train()
    second = logged(trainer, "loss")
    assert trainer.state.global_step == 4 and len(second) == 4 and second[0] < first[0]
    assert not trainer.time_budget.expired and isinstance(trainer._loss_spikes, LossSpikes)
    assert not logged(trainer, "loss_spike") and trainer.time_budget.earlier_seconds == 0.0
    stock = make_trainer(tmp_path / "again")
    stock.train()
    stock.train()
    assert second == pytest.approx(logged(stock, "loss"))


class BreakOff(TrainerCallback):
    """Ctrl-C after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_later_checkpoints_of_an_earlier_run_are_set_aside(tmp_path, capsys):
    """Or they would be the newest, and those of the new run rotated away."""
    options = {"max_steps": 8, "save_steps": 2, "save_total_limit": 1, "eval_strategy": "no"}
    make_trainer(tmp_path, **options).train()
    make_trainer(tmp_path, **options, save_strategy="no").train()
    assert (tmp_path / "checkpoint-8").is_dir()  # a training that saves nothing touches nothing
    again = make_trainer(tmp_path, callbacks=[BreakOff(5)], **options)
    with pytest.raises(KeyboardInterrupt):
        again.train()
    assert again.find_checkpoint(True) == str(tmp_path / "checkpoint-4")
    assert f"set aside as {tmp_path / '_abandoned-checkpoint-8'}" in capsys.readouterr().out
    resumed = make_trainer(tmp_path, callbacks=[BreakOff(6)], **{**options, "save_steps": 1})
    with pytest.raises(KeyboardInterrupt):
        resumed.train(resume_from_checkpoint=True)
    assert [path.name for path in folders.list_checkpoints(tmp_path)] == ["checkpoint-5"]
    resumed.train(resume_from_checkpoint="_abandoned-checkpoint-8")  # which can still be resumed from
    assert resumed.state.global_step == 8


def checkpoints_in(folder):
    """Names of all, also of those that were set aside."""
    return sorted(path.name for path in folder.glob("*checkpoint-*"))


def test_nothing_is_set_aside_before_there_is_something_in_its_place(tmp_path):
    """A training that does not begin, or is stopped before it saves, leaves the folder as it was."""
    make_trainer(tmp_path, save_only_model=True).train()
    with pytest.raises(UserError, match="holds no optimizer"):
        make_trainer(tmp_path).train(resume_from_checkpoint="checkpoint-2")
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, callbacks=[BreakOff(1)]).train()  # the user had forgotten to resume
    assert checkpoints_in(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_a_file_that_is_in_the_way_is_found_before_the_first_step(tmp_path):
    """Not at the first checkpoint: what was set aside before has a file of the user's in it now."""
    for _ in range(2):
        make_trainer(tmp_path).train()
    (tmp_path / "_abandoned-checkpoint-2" / "notes.md").write_text("mine")
    trainer = make_trainer(tmp_path)
    with pytest.raises(UserError, match="_abandoned-checkpoint-2 already exists and holds files not of this run"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_kill_between_two_renames_is_mended_before_the_newest_is_looked_for(tmp_path):
    """`checkpoint-4.replaced` is the newest, when the one that was to replace it never came."""
    make_trainer(tmp_path).train()
    replaced = (tmp_path / "checkpoint-4").rename(tmp_path / "checkpoint-4.replaced").stat().st_ino
    make_trainer(tmp_path, max_steps=6).train(resume_from_checkpoint=True)
    assert checkpoints_in(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert (tmp_path / "checkpoint-4").stat().st_ino == replaced  # not trained again


def test_all_that_was_in_the_folder_is_set_aside_for_a_run_from_another(tmp_path):
    """Also the checkpoints up to its step: they are of neither."""
    for name in ("first", "second"):
        make_trainer(tmp_path / name).train()
    make_trainer(tmp_path / "second").train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    aside = ["_abandoned-checkpoint-2", "_abandoned-checkpoint-4"]
    assert checkpoints_in(tmp_path / "second") == [*aside, "checkpoint-4"]
    assert checkpoints_in(tmp_path / "first") == ["checkpoint-2", "checkpoint-4"]


def test_a_checkpoint_that_was_set_aside_takes_no_names(tmp_path):
    """End of an epoch and best model are those of the later run, also when the earlier one is resumed."""
    options = {"max_steps": -1, "num_train_epochs": 1, "eval_steps": 6, "save_steps": 6}
    for _ in range(2):
        make_trainer(tmp_path, **options).train()
    names = folders.read_names(tmp_path)
    assert names == {"checkpoint_epoch_1": "checkpoint-6", "best_model": "checkpoint-6"}
    best = (tmp_path / "best_model" / "model.safetensors").read_bytes()
    make_trainer(tmp_path, **options).train(resume_from_checkpoint="_abandoned-checkpoint-6")
    assert folders.read_names(tmp_path) == names
    assert (tmp_path / "best_model" / "model.safetensors").read_bytes() == best


def test_names_of_an_earlier_run_do_not_pass_to_a_new_one(tmp_path):
    """Its checkpoint of the same step is not the best one, if nothing was evaluated; nor is an earlier one."""
    make_trainer(tmp_path).train()
    make_trainer(tmp_path, eval_strategy="no").train()
    assert checkpoints_in(tmp_path)[2:] == ["checkpoint-2", "checkpoint-4"] and folders.read_names(tmp_path) == {}


class WritesInto(TrainerCallback):
    """Adds a file to each checkpoint."""

    def __init__(self, name="sample.txt"):
        self.name = name

    def on_save(self, args, state, control, **kwargs):
        torch.save({"text": "Once upon a time"}, folders.list_checkpoints(args.output_dir)[-1] / self.name)


def test_a_checkpoint_with_a_file_of_somebody_elses_stays_and_is_named(tmp_path, capsys):
    """Once each: else `save_total_limit` would be without effect, and nobody would know why."""
    options = {"eval_strategy": "no", "save_steps": 1, "save_total_limit": 2}
    make_trainer(tmp_path, callbacks=[WritesInto()], **options).train()
    assert len(checkpoints_in(tmp_path)) == 4
    said = [line for line in capsys.readouterr().out.splitlines() if "save_total_limit" in line]
    assert said == [
        f"{tmp_path / name} is kept beyond save_total_limit: sample.txt was added to it"
        for name in ("checkpoint-1", "checkpoint-2")
    ]


def test_a_checkpoint_with_weights_of_a_callback_is_resumed(tmp_path):
    """Nobody reads a pickle of that name; those that could be read are refused."""
    make_trainer(tmp_path, callbacks=[WritesInto("ema.pt")]).train()
    resumed = make_trainer(tmp_path, max_steps=6)
    assert resumed.find_checkpoint(True) == str(tmp_path / "checkpoint-4")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6 and (tmp_path / "checkpoint-4" / "ema.pt").is_file()


@pytest.mark.parametrize("name", ["best_model/generation_config.json", "tmp-README.md", "tmp-curves.png"])
def test_files_of_the_users_are_not_replaced(tmp_path, name):
    """One saved over a file of the best model, and one that has a temporary name: refused, and left as it is."""
    make_trainer(tmp_path).train()
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"^output_dir: .*{name} was not written by a run of gpt2_hf"):
        make_trainer(tmp_path).train()
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["best_model", "checkpoint-300", "tmp-checkpoint-2", "checkpoint_names.json"])
def test_a_name_that_is_taken_is_found_before_the_first_step(tmp_path, name):
    """Not at the first checkpoint or best model, when the training until then would be lost."""
    trainer = make_trainer(tmp_path)
    if name.endswith(".json"):
        (tmp_path / name).write_text("{}")
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("mine")
    message = f"^output_dir: .*{name} was not written by a run of gpt2_hf.*, or choose another output_dir$"
    with pytest.raises(UserError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("options", [{"eval_strategy": "no"}, {"plain": True, "eval_strategy": "steps"}], ids=str)
def test_what_transformers_writes_in_the_folder_is_no_obstacle(tmp_path, options):
    """State and results of an earlier training; where none can be the best, a `best_model` of the user's."""
    trainer = make_trainer(tmp_path, max_steps=2, **options)
    trainer.save_metrics("train", trainer.train().metrics)
    trainer.save_state()
    trainer.save_model(str(tmp_path / "best_model"))
    trainer.train()
    assert trainer.state.global_step == 2 and not (tmp_path / "best_model" / "manifest.json").exists()


@pytest.mark.parametrize("option", [{"overwrite_output_dir": True}, {"sample_tokens": 9}, {"verbose": True}], ids=str)
def test_what_the_main_job_reads_is_refused(tmp_path, option):
    """Where it would do nothing: delete an earlier run, write a text, print an account."""
    with pytest.raises(UserError, match=f"--{next(iter(option))} is read by the main job; leave it out"):
        make_trainer(tmp_path, **option)
    make_trainer(tmp_path, sample_tokens=0)


def test_a_checkpoint_in_the_arguments_is_not_passed_over(tmp_path):
    """The main job reads it, and so may a script, which hands it on; a run would have begun anew."""
    make_trainer(tmp_path).train()
    trainer = make_trainer(tmp_path, resume_from_checkpoint="checkpoint-2")
    with pytest.raises(UserError, match=r"call train\(resume_from_checkpoint='checkpoint-2'\)$"):
        trainer.train()
    assert checkpoints_in(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    assert checkpoints_in(tmp_path) == ["_abandoned-checkpoint-4", "checkpoint-2", "checkpoint-4"]
    make_trainer(tmp_path, plain=True, resume_from_checkpoint="latest", save_strategy="no", max_steps=1).train()


def test_a_budget_that_ends_a_training_says_so(tmp_path, capsys):
    """And what there was no time for, if there was to be an evaluation; the commands are the main job's."""
    for strategy, left_out in (("steps", ["no time was left for an evaluation"]), ("no", [])):
        make_trainer(tmp_path / strategy, max_training_hours=1e-6, eval_strategy=strategy).train()
        lines = capsys.readouterr().out.splitlines()
        first = lines.index("time budget of 1e-06 h reached at step 1")
        assert lines[first + 1 :] == left_out


def test_hours_are_no_results_in_a_model_card(tmp_path):
    """transformers' card has loss and perplexity, and the history keeps the hours."""
    trainer = make_trainer(tmp_path)
    trainer.train()
    hours = logged(trainer, "hours")
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "Perplexity" in card and "Hours" not in card
    assert hours and logged(trainer, "hours") == hours


def test_the_hub_gets_what_the_arguments_say(tmp_path, monkeypatch):
    """`push_to_hub()` after the training, with hub_model_id, hub_token, hub_private_repo and hub_revision.

    No state of a training, also of an earlier one that was set aside.
    """
    make_trainer(tmp_path, max_steps=2).train()
    asked = {}

    def create_repo(name, **options):
        asked["repository"] = {"name": name, **options}
        return SimpleNamespace(repo_id=f"someone/{name}")

    hub = SimpleNamespace(create_repo=create_repo, upload_folder=lambda **options: asked.update(upload=options))
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    options = {"hub_model_id": "tiny", "hub_token": "secret", "hub_private_repo": True, "hub_revision": "draft"}
    options |= {"processing_class": load_tokenizer(), "max_steps": 1}
    trainer = make_trainer(tmp_path, push_to_hub=True, hub_strategy="end", **options)
    trainer.train()
    assert asked == {"repository": {"name": "tiny", "token": "secret", "private": True, "exist_ok": True}}
    trainer.push_to_hub()
    expected = {"repo_id": "someone/tiny", "token": "secret", "revision": "draft", "folder_path": str(tmp_path)}
    assert expected.items() <= asked["upload"].items()
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}
    assert checkpoints_in(tmp_path) == ["_abandoned-checkpoint-2", "checkpoint-1"]
    there = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    uploaded = list(filter_repo_objects(there, ignore_patterns=asked["upload"]["ignore_patterns"]))
    assert "model.safetensors" in uploaded and not any("checkpoint-" in name for name in uploaded)


def test_tied_weights_are_not_missed(tmp_path, caplog):
    """The head is in no file, since it is the embedding; the base class warns of it, and we of what is missing."""
    make_trainer(tmp_path).train()
    resumed = make_trainer(tmp_path, load_best_model_at_end=True)
    resumed.train(resume_from_checkpoint="checkpoint-2")
    assert "missing keys" not in caplog.text
    resumed._issue_warnings_after_load(resumed.model.load_state_dict({}, strict=False))
    assert "missing keys" in caplog.text and "lm_head" not in caplog.text


def test_resuming_finds_the_newest_whole_checkpoint(tmp_path, capsys):
    """`train(resume_from_checkpoint=True)` passes over a damaged one; a name works; a damaged path is refused."""
    whole = make_trainer(tmp_path)
    whole.train()
    weights = tmp_path / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="checkpoint-4 is not an intact checkpoint"):
        make_trainer(tmp_path).train(resume_from_checkpoint="checkpoint-4")
    resumed = make_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is damaged" in capsys.readouterr().err
    assert logged(resumed, "loss") == logged(whole, "loss")
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        make_trainer(tmp_path / "empty").train(resume_from_checkpoint=True)


def test_a_model_alone_is_not_resumed_from(tmp_path):
    """best_model, where its checkpoint has been deleted: refused before anything is loaded into the model."""
    make_trainer(tmp_path).train()
    for checkpoint in checkpoints_in(tmp_path):
        shutil.rmtree(tmp_path / checkpoint)
    trainer = make_trainer(tmp_path)
    weights = weights_of(trainer.model)
    for wanted in ("best_model", tmp_path / "best_model"):
        with pytest.raises(
            UserError, match=r"best_model holds a model and no state of a training; load it with from_"
        ):
            trainer.train(resume_from_checkpoint=wanted)
    assert torch.equal(weights_of(trainer.model), weights)


def test_only_safetensors_are_read(tmp_path):
    """Weights that are a pickle are refused, though the base class would take them."""
    trainer = make_trainer(tmp_path)
    trainer.train()
    folder = tmp_path / "checkpoint-4"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no weights"):
        trainer._load_from_checkpoint(str(folder))


def test_the_first_process_decides_which_checkpoint_is_best(tmp_path, monkeypatch):
    """Another host that does not see the best one follows it; one that does not see the checkpoint stops the run."""
    trainer = make_trainer(tmp_path)
    trainer.train()
    last, best = str(tmp_path / "checkpoint-4"), trainer.state.best_global_step
    trainer.job.best_is_comparable = False  # what this process believes
    answers = iter([(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])  # largest of all: the folder is unseen, the best is forgotten
    monkeypatch.setattr("gpt2_hf.runtime.distributed.largest_of_each", lambda *values: next(answers))
    trainer.complete_publication(last)
    assert trainer.state.best_global_step == best
    trainer.complete_publication(last)
    assert trainer.state.best_global_step is None
    with pytest.raises(UserError, match="a folder that all hosts share"):
        trainer.complete_publication(last)


class Counter(TrainerCallback):
    """Counts evaluations and ends the training at the third."""

    def __init__(self, last=3):
        self.count, self.last = 0, last

    def on_evaluate(self, args, state, control, **kwargs):
        self.count += 1
        control.should_training_stop = self.count >= self.last


def test_callbacks_that_change_control(tmp_path):
    """A callback that stops after an evaluation ends the run there, with a checkpoint of that step."""
    trainer = make_trainer(tmp_path, eval_steps=1, save_steps=4, callbacks=[Counter])
    trainer.train()
    assert trainer.state.global_step == 3 and (tmp_path / "checkpoint-3").is_dir()


class StopsAt(TrainerCallback):
    """Ends the training after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def evaluated(trainer, name="eval_loss"):
    """The steps after which a number of an evaluation was logged."""
    return [entry["step"] for entry in trainer.state.log_history if name in entry]


def test_a_callback_that_stops_in_mid_epoch_gets_what_the_epoch_strategy_gives(tmp_path):
    """An evaluation, and a checkpoint that remembers it, as from transformers."""
    options = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    trainer = make_trainer(tmp_path, callbacks=[StopsAt(2)], **options)
    trainer.train()
    assert evaluated(trainer) == [2] and checkpoints_in(tmp_path) == ["checkpoint-2"]
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert evaluated(resumed) == [2, 4]


class ScoresTrainingText(TrainerCallback):
    """A recipe that many copy: where an epoch is evaluated, the training text is scored too."""

    def on_epoch_end(self, args, state, control, **kwargs):
        if not control.should_evaluate:
            return None
        kept = copy.deepcopy(control)
        self.trainer.evaluate(self.trainer.train_dataset, metric_key_prefix="train")
        return kept


@pytest.mark.parametrize("plain", [False, True])
def test_a_callback_sees_what_is_due_at_the_end_of_an_epoch(tmp_path, plain):
    """And nothing is done twice."""
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}
    scores = ScoresTrainingText()
    scores.trainer = make_trainer(tmp_path, plain=plain, callbacks=[scores], **options)
    scores.trainer.train()
    assert evaluated(scores.trainer) == evaluated(scores.trainer, "train_perplexity") == [6, 12]
    assert checkpoints_in(tmp_path) == ["checkpoint-12", "checkpoint-6"]


class TheirProgress(ProgressCallback):
    """A bar of the user's own."""


@pytest.mark.parametrize("report_to", ["none", "tensorboard"])
def test_callbacks_that_report_stay(tmp_path, report_to):
    """Those that transformers adds are exchanged for ours; those that are given are not, whatever their class."""
    writer = SummaryWriter(tmp_path / "mine")
    theirs = [TheirProgress(), TensorBoardCallback(writer), PrinterCallback()]
    options = {"report_to": report_to, "disable_tqdm": False}
    trainer = make_trainer(tmp_path / "run", callbacks=[*theirs, ProgressCallback], **options)
    there = trainer.callback_handler.callbacks
    assert [callback for callback in there if any(callback is own for own in theirs)] == theirs
    assert theirs[1].tb_writer is writer
    kinds = Counted(type(callback) for callback in there)
    assert kinds[ProgressCallback] == kinds[TerminalCallback] == kinds[TensorBoardCallback] == 1
    assert kinds[ContinuousTensorBoardCallback] == (report_to == "tensorboard")


def test_early_stopping_survives_a_resume(tmp_path):
    """transformers' callback counts on where the checkpoint was written, by the option and as a callback."""
    worse = {"learning_rate": 1e-9, "lr_scheduler_type": "constant", "max_steps": 8, "eval_steps": 1, "save_steps": 1}
    for name, given in (
        ("option", {"early_stopping_patience": 3}),
        ("callback", {"callbacks": [EarlyStoppingCallback(3)]}),
    ):
        values = iter([1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
        given = {**worse, **given, "metric_for_best_model": "my_loss"}
        run = {"compute_metrics": lambda p, values=values: {"my_loss": next(values)}, **given}
        broken = make_trainer(tmp_path / name, **{**run, "max_steps": 3, "lr_scheduler_type": "constant"})
        broken.train()
        assert broken.state.best_global_step == 1 and broken.state.global_step == 3
        (counter,) = [c for c in broken.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
        assert counter.early_stopping_patience_counter == 2
        counter.early_stopping_patience_counter = 0  # the same object is given to the second one
        resumed = make_trainer(tmp_path / name, **run)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 4
        assert (tmp_path / name / "checkpoint-4").is_dir()


class CountsSteps(TrainerCallback, ExportableState):
    """A callback with a state, and with the method that callbacks for averages of weights have."""

    def __init__(self):
        self.number = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.number += 1

    def restore(self):
        raise AssertionError("nobody asks it here")

    def state(self):
        return {"args": {}, "attributes": {"number": self.number}}


def test_the_state_of_a_callback_survives_a_resume(tmp_path):
    """Whatever its methods are called."""
    make_trainer(tmp_path, callbacks=[CountsSteps]).train()
    counter = CountsSteps()
    make_trainer(tmp_path, callbacks=[counter]).train(resume_from_checkpoint="checkpoint-2")
    assert counter.number == 4


def test_early_stopping_needs_evaluations(tmp_path):
    """Refused in one line without them, or without a metric."""
    for option, value, message in (
        ("eval_strategy", "no", "has no effect with --eval_strategy no"),
        ("metric_for_best_model", None, "needs --metric_for_best_model"),
    ):
        with pytest.raises(UserError, match=f"^--early_stopping_patience {message}"):
            make_trainer(tmp_path, early_stopping_patience=2, **{option: value})


# ---- search for hyperparameters ----


def test_model_init(tmp_path):
    """The model is made anew by each `train()`."""
    trainer = make_trainer(tmp_path, model_init=make_model)
    trainer.train()
    first, model = logged(trainer, "loss"), trainer.model
    trainer.train()
    assert logged(trainer, "loss") == first and trainer.model is not model
    assert trainer.model.config.use_cache is True


def test_hyperparameter_search(tmp_path):
    """optuna searches for the lowest loss: perplexity and numbers of tokens are no part of the objective."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trainer = make_trainer(tmp_path, model_init=make_model, max_steps=2)
    rates = {"learning_rate": [1e-6, 1e-2]}
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates["learning_rate"])},
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler(rates),
    )
    assert best.hyperparameters == {"learning_rate": 1e-2}
    assert best.objective == pytest.approx(trainer_loss(tmp_path), abs=1e-5)
    assert (tmp_path / f"run-{best.run_id}" / "best_model" / "model.safetensors").is_file()


class KeepsFirstWeight(TrainerCallback):
    """That of each seed."""

    def __init__(self):
        self.weights = {}

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.weights[args.seed] = weights_of(model)[0].item()


def test_a_search_over_seeds_draws_the_weights_by_them(tmp_path, monkeypatch):
    """Each trial by its own, as a training alone does."""
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    keeps, alone, config = KeepsFirstWeight(), KeepsFirstWeight(), make_model().config
    options = {"model_init": lambda: GPT2HFForCausalLM(config), "max_steps": 1, "save_strategy": "no"}
    options |= {"eval_strategy": "no"}
    trainer = make_trainer(tmp_path, callbacks=[keeps], **options)
    trainer.hp_search_backend, trainer.hp_space, trainer.hp_name = HPSearchBackend.OPTUNA, lambda t: t.params, None
    for seed in (1, 2):
        trainer.train(trial=SimpleNamespace(number=seed, params={"seed": seed}))
        trainer.model = trainer.model_wrapped = None  # as transformers does between two trials
        make_trainer(tmp_path, callbacks=[alone], seed=seed, **options).train()
    assert keeps.weights == alone.weights and len(set(alone.weights.values())) == 2


def test_the_objective_after_an_evaluation_is_the_loss(tmp_path):
    """The first evaluation outside of training brings the time of its preparation into all that follow."""
    trainer = make_trainer(tmp_path)
    for _ in range(2):
        metrics = trainer.evaluate()
        assert _objective(metrics) == metrics["eval_loss"]


@pytest.mark.parametrize("backend", [HPSearchBackend.RAY, HPSearchBackend.WANDB])
def test_a_trial_that_diverges_ends_other_searches(tmp_path, monkeypatch, backend):
    """They would take NaN, or the last number before it, for a result."""
    monkeypatch.setattr("transformers.integrations.hp_params", dict)
    trainer = make_trainer(tmp_path, model_init=make_model, eval_strategy="no", lr_scheduler_type="constant")
    monkeypatch.setattr(trainer, "_get_output_dir", lambda trial: str(tmp_path / "trial"))  # asks the package
    trainer.hp_search_backend, trainer.objective = backend, None
    with pytest.raises(TrainingDivergedError):
        trainer.train(trial={"learning_rate": 1e30})
    assert trainer.objective is None


def test_a_trial_that_diverges_fails_alone(tmp_path, capsys, monkeypatch):
    """With optuna its objective is NaN, its curve is ended, and the next trial trains."""
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    options = {"report_to": "tensorboard", "eval_strategy": "no", "lr_scheduler_type": "constant"}
    trainer = make_trainer(tmp_path, model_init=make_model, **options)
    trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: trial.params
    trainer.hp_name = lambda trial: f"trial-{trial.number}"
    output = trainer.train(trial=SimpleNamespace(number=0, params={"learning_rate": 1e30}))
    assert math.isnan(trainer.objective) and math.isnan(output.training_loss)
    assert "warning: this trial has failed: training diverged" in capsys.readouterr().err
    trainer.train(trial=SimpleNamespace(number=1, params={"learning_rate": 1e-3}))
    assert trainer.state.global_step == 4
    assert {path.name for path in (tmp_path / "runs" / tmp_path.name).glob("trial-*")} == {"trial-0", "trial-1"}
    trainer.hp_search_backend = None
    trainer.args.learning_rate = 1e30
    with pytest.raises(TrainingDivergedError):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("ema_decay", 0.9), ("early_stopping_patience", 1), ("distill_alpha", 0.9)),
        *(("global_batch_size", 8), ("precision", "bf16"), ("bf16", True), ("neftune_noise_alpha", 5.0)),
    ],
)
def test_a_search_refuses_what_is_read_once(tmp_path, name, value):
    """In one line, where it would have changed nothing; learning rates are searched as ever."""
    trainer = make_trainer(tmp_path, model_init=make_model)
    trainer.hp_search_backend = HPSearchBackend.WANDB
    trainer._hp_search_setup({"learning_rate": 0.5})
    assert trainer.args.learning_rate == 0.5
    with pytest.raises(UserError, match=f"hyperparameter_search: {name} is read when a Trainer is made"):
        trainer._hp_search_setup({name: value})


def test_a_search_refuses_smoothing_that_the_trainer_has_made(tmp_path):
    """With another model than this package's, which smooths itself."""
    trainer = make_trainer(tmp_path, model_init=lambda: make_model("stock"))
    trainer.hp_search_backend = HPSearchBackend.WANDB
    with pytest.raises(UserError, match="label_smoothing_factor is read when a Trainer is made"):
        trainer._hp_search_setup({"label_smoothing_factor": 0.1})


@pytest.mark.parametrize("name", ["per_device_train_batch_size", "gradient_accumulation_steps"])
def test_a_search_does_not_divide_a_batch_anew(tmp_path, name):
    """With `global_batch_size` it is divided when the arguments are made."""
    trainer = make_trainer(tmp_path, model_init=make_model, global_batch_size=4)
    trainer.hp_search_backend = HPSearchBackend.WANDB
    with pytest.raises(UserError, match=f"{name} is read when a Trainer is made"):
        trainer._hp_search_setup({name: 2})


def trainer_loss(folder):
    trainer = make_trainer(folder / "alone", learning_rate=1e-2, max_steps=2)
    trainer.train()
    return logged(trainer, "eval_loss")[-1]
