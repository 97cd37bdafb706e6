"""A user's own training on two processes, copies and shards: each ends as one process would."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, default_data_collator

from gpt2_hf import GPT2HFTrainer, GPT2HFTrainingArguments
from gpt2_hf.checkpoints import folders
from gpt2_hf.errors import UserError

from ..conftest import needs_fork_server
from .helpers import BLOCKS, logged, make_model, make_trainer, settings
from .processes import on_two
from .test_as_trainer import Bigram

pytestmark = [
    pytest.mark.distributed,
    needs_fork_server,
]


def has_the_best(folder, **options):
    """Whether a process ends with the weights of the best checkpoint, which is not the last."""
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = make_trainer(folder, **options)
    trainer.train()
    best = load_file(Path(folder) / "checkpoint-2" / "model.safetensors")
    weights = dict(trainer.unwrapped_model().named_parameters())
    whole = {
        name: weights[name].full_tensor() if isinstance(weights[name], DTensor) else weights[name] for name in best
    }
    return trainer.state.best_global_step == 2 and all(torch.equal(whole[name], best[name]) for name in best)


class Seed(TrainerCallback):
    """Looks at the random numbers that a training begins with."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.numbers = torch.rand(4).tolist()


def train_copies(folder):
    """What there is to say of two copies."""
    seed = Seed()
    options = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "ddp_backend": "gloo"}
    make_trainer(folder, model_init=make_model, callbacks=[seed], **options).train()
    return {"best": has_the_best(folder), "numbers": seed.numbers, "backend": dist.get_backend()}


def refusal(folder, model):
    with pytest.raises(UserError) as caught:
        make_trainer(folder, model=model, fsdp=True)
    return str(caught.value)


def train_shards(folder):
    """What there is to say of two shards."""
    import peft

    config = {"reshard_after_forward": False}
    args = GPT2HFTrainingArguments(
        folder,
        **settings(precision="fp32", max_training_hours=None, gradient_accumulation_steps=2),
        fsdp=True,
        fsdp_config=config,
    )
    accumulated = []
    for _ in range(2):
        trainer = GPT2HFTrainer(make_model(), args, default_data_collator, BLOCKS, BLOCKS)
        handed_on = trainer.accelerator.gradient_state.plugin_kwargs
        accumulated.append([args.gradient_accumulation_steps, handed_on["sync_each_batch"]])
    adapted = peft.get_peft_model(make_model(), peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    return {
        "reshards": trainer.accelerator.state.fsdp_plugin.reshard_after_forward,
        "accumulated": accumulated,
        "refused": [refusal(folder, model) for model in (adapted, Bigram())],
        "best": has_the_best(folder, fsdp=True),
    }


def test_two_copies(tmp_path):
    """Both end with the best model; with `model_init` too each draws dropout of its own; by the backend asked for."""
    results = on_two(train_copies, tmp_path)
    assert [result["best"] for result in results] == [True, True]
    assert results[0]["numbers"] != results[1]["numbers"]
    assert [result["backend"] for result in results] == ["gloo", "gloo"]


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_two_shards(tmp_path):
    """Both end with the best model; arguments serve several Trainers; what could not be saved is refused at once."""
    for result in on_two(train_shards, tmp_path, fsdp=True):
        assert result["best"] is True and result["reshards"] is False
        assert result["accumulated"] == [[2, True], [2, True]]
        of_adapter, of_module = result["refused"]
        assert "which PeftModel is not" in of_adapter and "which Bigram is not" in of_module


def resumes_from(folder):
    """What each process goes on from, if the newest checkpoint that the second one sees is an older one."""
    seen = {"0": Path(folder, "checkpoint-4"), "1": Path(folder, "checkpoint-2")}
    trainer, rank, given, refused = make_trainer(folder), os.environ["RANK"], [], ""
    Trainer.train = lambda self, checkpoint, *_: given.append(checkpoint)
    folders.newest_valid = lambda run_dir: (seen[rank], [])
    trainer.train(resume_from_checkpoint=True)
    seen["0"] = None
    try:
        trainer.train(resume_from_checkpoint=True)
    except ValueError as error:
        refused = str(error)
    return {"from": [Path(checkpoint).name for checkpoint in given], "refused": refused}


def test_processes_resume_from_the_same_checkpoint(tmp_path):
    """That which the first one sees; and none, if it sees none."""
    for result in on_two(resumes_from, tmp_path):
        assert result["from"] == ["checkpoint-4"] and "No valid checkpoint found" in result["refused"]


def counted_tokens(folder):
    """What a loss is divided by in a step whose processes have other numbers of tokens: averaged over both, or not."""
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"].clone()} for row in BLOCKS[:4]]
    for row in rows[2:]:
        row["labels"][4:] = -100  # the second process has few
    options = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "per_device_train_batch_size": 2}
    options |= {"train_sampling_strategy": "sequential"}
    seen = []
    for average in (True, False):
        trainer = make_trainer(folder, train_dataset=rows, average_tokens_across_devices=average, **options)
        step = trainer.training_step
        trainer.training_step = lambda *args, step=step: seen.append(int(args[-1])) or step(*args)
        trainer.train()
    return seen


def test_tokens_are_counted_over_all_processes(tmp_path):
    """`average_tokens_across_devices`: a loss is divided by the tokens of all, else by those of a process."""
    assert on_two(counted_tokens, tmp_path) == [[68, 62], [68, 6]]


def resumed_losses(folder):
    """`train_loss` of a run resumed between two logs, and the logged losses of its steps; of its last step no log."""
    options = {"eval_strategy": "no", "save_steps": 2}
    whole = make_trainer(f"{folder}/whole", **options)
    whole.train()
    make_trainer(f"{folder}/run", logging_steps=3, **options).train()
    resumed = make_trainer(f"{folder}/run", logging_steps=3, **options)
    return [
        resumed.train(resume_from_checkpoint=f"{folder}/run/checkpoint-2").training_loss,
        sum(logged(whole, "loss")[2:]) / 2,
    ]


def test_the_train_loss_of_a_resumed_run_is_over_all_processes(tmp_path):
    """As the logged losses are, of what was trained before the checkpoint and of what comes after the last log."""
    for train_loss, expected in on_two(resumed_losses, tmp_path):
        assert train_loss == pytest.approx(expected, abs=1e-6)
