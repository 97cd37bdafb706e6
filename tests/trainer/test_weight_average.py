"""`ema_decay`: what the average is, and that all who look at the model see it, while training goes on without it."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from gpt2_hf import GPT2HFForCausalLM, GPT2HFTrainingArguments
from gpt2_hf.__main__ import main
from gpt2_hf.checkpoints import manifest
from gpt2_hf.checkpoints.state_files import load_state
from gpt2_hf.errors import UserError
from gpt2_hf.options.parsing import parse
from gpt2_hf.trainer.weight_average import WeightAverage

from .. import ranks
from ..runs import assert_same_state, final_state, history, train_until_signal
from .helpers import BLOCKS, make_model, make_trainer, true_loss

DECAY = ("--ema_decay", "0.8")
UNAVERAGED = "unaveraged_weights.safetensors"


class State:
    """What a callback is told of the steps."""

    global_step = 0


def walk(average, model, steps):
    """Let the weights wander at random, and yield them after each step."""
    generator, state = torch.Generator().manual_seed(1), State()
    average.on_train_begin(None, state, None)
    for step in range(1, steps + 1):
        state.global_step = step
        with torch.no_grad():
            for weight in model.parameters():
                weight += torch.randn(weight.shape, generator=generator)
        average.on_step_end(None, state, None)
        yield model.weight.detach().clone()


@pytest.mark.parametrize(("decay", "interval"), [(0.5, 1), (0.99, 2), (0.998, 10), (0.9999, 10)])
def test_the_average_is_the_definition(decay, interval):
    """Each k-th step counts, the first of them whole; a young average spans a ninth of the run."""
    model = nn.Linear(3, 2)
    average = WeightAverage(decay, lambda: model)
    expected = None
    for step, weight in enumerate(walk(average, model, 300), start=1):
        if step % interval == 0:
            updates = step // interval - 1
            kept = min(decay**interval, updates / (updates + 9))
            expected = weight if expected is None else kept * expected + (1 - kept) * weight
        with average.in_model():
            assert torch.allclose(model.weight, weight if expected is None else expected, atol=1e-4)
    assert average.num_updates == 300 // interval


def test_the_model_gets_its_weights_back():
    """Bit for bit, also when an average is asked for within another, or something goes wrong."""
    model = nn.Linear(3, 2)
    average = WeightAverage(0.8, lambda: model)
    *_, weight = walk(average, model, 7)
    with average.in_model(), average.in_model():
        inside = model.weight.detach().clone()
    assert torch.equal(model.weight, weight) and not torch.equal(inside, weight)
    with pytest.raises(KeyError), average.in_model():
        raise KeyError
    assert torch.equal(model.weight, weight)
    average.settle()
    assert torch.equal(model.weight, inside)
    average.settle()  # once
    assert torch.equal(model.weight, inside)


def test_weights_that_are_not_trained_are_left_out():
    """They do not change, so they have no average."""
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(0.8, lambda: model)
    list(walk(average, model, 3))
    with average.in_model():
        kept = model.bias.clone()
    assert torch.equal(kept, model.bias)


class Watch(TrainerCallback):
    """Notes the weights at steps, and those that it is shown when the training is over."""

    def __init__(self):
        self.after, self.end = {}, None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after[state.global_step] = model.lm_head.weight.detach().clone()

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.end = model.lm_head.weight.detach().clone()


def test_reporters_find_the_average_in_the_model(tmp_path, monkeypatch):
    """Those of transformers, which upload it when the training is over, as with WANDB_LOG_MODEL=end."""
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Watch)
    trainer = make_trainer(tmp_path, ema_decay=0.8, report_to="wandb")
    trainer.train()
    (reporter,) = (each for each in trainer.callback_handler.callbacks if type(each) is Watch)
    assert torch.equal(reporter.end, trainer.model.lm_head.weight)
    assert not torch.equal(reporter.end, reporter.after[4])


def test_training_is_the_same_and_the_average_is_scored_and_saved(tmp_path):
    """The weights in training are those of a run without; evaluations are of the weights in the checkpoint."""
    plain, watch = Watch(), Watch()
    make_trainer(tmp_path / "plain", callbacks=[plain], max_steps=6).train()
    trainer = make_trainer(tmp_path / "run", callbacks=[watch], max_steps=6, ema_decay=0.8)
    trainer.train()
    assert all(torch.equal(watch.after[step], plain.after[step]) for step in range(1, 7))
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    for step in (2, 4, 6):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        saved = GPT2HFForCausalLM.from_pretrained(folder)
        assert losses[step] == pytest.approx(true_loss(saved, BLOCKS[:11]), abs=1e-5)
        assert not torch.equal(saved.lm_head.weight, watch.after[step])
        weights = load_state(folder / UNAVERAGED)["weights"]
        assert torch.equal(weights["transformer.wte.weight"], watch.after[step])
    assert torch.equal(watch.end, saved.lm_head.weight) and torch.equal(trainer.model.lm_head.weight, watch.end)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[6], abs=1e-6)
    assert not (tmp_path / "run" / "best_model" / UNAVERAGED).exists()


def test_the_best_model_is_not_overwritten_at_the_end(tmp_path):
    """load_best_model_at_end: the model is the best one, not the last average."""
    highest = {"metric_for_best_model": "loss", "greater_is_better": True}  # the first evaluation has it
    trainer = make_trainer(tmp_path, max_steps=6, ema_decay=0.5, load_best_model_at_end=True, **highest)
    trainer.train()
    assert trainer.state.best_global_step == 2
    best = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert torch.equal(trainer.model.lm_head.weight, best["transformer.wte.weight"])


def test_what_breaks_off_leaves_the_average(tmp_path):
    """As after a whole training, the model and what it is asked for belong together."""

    class Fails(Watch):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            super().on_step_end(args, state, control, model)
            if state.global_step == 3:
                raise KeyboardInterrupt

    watch = Fails()
    trainer = make_trainer(tmp_path, callbacks=[watch], ema_decay=0.8)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not torch.equal(trainer.model.lm_head.weight, watch.after[3])
    loss = trainer.evaluate()["eval_loss"]
    assert loss == pytest.approx(true_loss(trainer.model, BLOCKS[:11]), abs=1e-5)


def test_16_bits_are_refused(tmp_path):
    """A step of 1 / 500 of the difference would be rounded away."""
    trainer = make_trainer(tmp_path, model=make_model().bfloat16(), ema_decay=0.8)
    with pytest.raises(UserError, match="--ema_decay needs weights in fp32"):
        trainer.train()


@pytest.mark.parametrize("value", ["0", "1", "-0.5", "1.5"])
def test_no_decay_is_refused(value):
    """Before anything is read."""
    with pytest.raises(UserError, match=r"--ema_decay must be (above 0|below 1), got "):
        parse([GPT2HFTrainingArguments], ["--ema_decay", value, "--use_cpu"])


# ---- the main job ----


def test_a_resumed_run_goes_on_bit_for_bit(train_tiny, tmp_path):
    """Interrupted between two evaluations, or within one: weights, average and history are those of a whole run."""
    whole = tmp_path / "whole"
    assert train_tiny(whole, *DECAY) == 0
    last = load_state(whole / "checkpoint-25" / UNAVERAGED)
    assert last["num_updates"] == 25
    for step, event in ((13, "on_step_begin"), (11, "on_prediction_step")):
        parts = tmp_path / event
        assert train_until_signal(parts, step, train_tiny, *DECAY, event=event) == 75
        assert train_tiny(parts, *DECAY, "--resume_from", "latest") == 0
        assert_same_state(final_state(parts, 25), final_state(whole, 25))
        unaveraged = load_state(parts / "checkpoint-25" / UNAVERAGED)
        assert unaveraged["num_updates"] == 25
        assert all(torch.equal(weight, unaveraged["weights"][name]) for name, weight in last["weights"].items())
        assert history(parts) == history(whole)


def test_an_average_can_be_given_up_and_begun(train_tiny, tmp_path, capsys):
    """Without the option a run goes on from the weights in training; with it, a plain run gets an average."""
    averaged, given_up = tmp_path / "averaged", tmp_path / "given_up"
    options = ("--lr_scheduler_type", "constant", "--save_every", "10")
    assert train_tiny(averaged, *DECAY, *options, "--max_steps", "10") == 0
    shutil.copytree(averaged, given_up)
    assert train_tiny(given_up, *options, "--max_steps", "20", "--resume_from", "latest") == 0
    assert train_tiny(tmp_path / "plain", *options, "--max_steps", "20") == 0
    assert_same_state(final_state(given_up, 20), final_state(tmp_path / "plain", 20))
    assert "ema_decay 0.8 → None" in capsys.readouterr().out
    assert train_tiny(tmp_path / "plain", *DECAY, *options, "--max_steps", "30", "--resume_from", "latest") == 0
    assert load_state(tmp_path / "plain" / "checkpoint-30" / UNAVERAGED)["num_updates"] == 10
    assert manifest.damage(tmp_path / "plain" / "checkpoint-30") is None


@pytest.mark.usefixtures("quick_probe")
def test_a_plan_knows_what_an_average_takes(tiny_options, tmp_path, capsys):
    """Memory of a device, alone and among several, and room on the disk."""
    lines = {}
    for decay in ((), DECAY):
        options = [*tiny_options, "--max_train_samples", "40", "--d_model", "256", "--nproc", "2"]
        assert main(["plan", *options, *decay, "--checkpoint_dir", str(tmp_path / "run")]) == 0
        lines[decay] = capsys.readouterr().out
    assert "moving average" not in lines[()] and re.search(r"moving average [1-9]\d* MiB, ", lines[DECAY])
    for kind in ("disk: ", "DDP: ", "FSDP2: "):
        sizes = [next(line for line in out.splitlines() if line.startswith(kind)) for out in lines.values()]
        assert sizes[0] != sizes[1], kind


@pytest.mark.distributed
@pytest.mark.parametrize("fsdp", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_processes_have_the_average_of_one(tiny_options, tmp_path, fsdp):
    """Copies of the model, or shards of it: evaluations, saved weights and those in training, to rounding."""
    options = [*tiny_options, "--max_steps", "6", "--eval_every", "2", "--logging_steps", "1", "--dropout", "0"]
    options += ["--global_batch_size", "8", "--batch_size", "4"]

    def run(name, processes, *further):
        further += ("--fsdp",) if fsdp and processes == 2 else ()
        command = ["train", *options, *further, "--checkpoint_dir", str(tmp_path / name)]
        ranks.run(processes, command, tmp_path / "log", fsdp=fsdp)
        log = history(tmp_path / name)
        return [[entry[key] for entry in log if key in entry] for key in ("loss", "eval_loss")]

    one, two, plain = run("one", 1, *DECAY), run("two", 2, *DECAY), run("plain", 2)
    assert two[0] == plain[0] and two[1][-1] != plain[1][-1]
    assert two[1] == pytest.approx(one[1], abs=2e-5)
    saved, trained = [], []
    for name in ("one", "two"):
        saved.append(load_file(tmp_path / name / "checkpoint-6" / "model.safetensors"))
        trained.append(load_state(tmp_path / name / "checkpoint-6" / UNAVERAGED)["weights"])
    for first, second in (saved, trained):
        assert first.keys() == second.keys()
        assert all(torch.allclose(weight, second[name], atol=1e-4) for name, weight in first.items())
    if fsdp:  # to save gathers the weights, and divides them again
        assert run("unsaved", 2, *DECAY, "--save_strategy", "no") == two
        resume = (*DECAY, "--max_steps", "8", "--resume_from", "latest")
        assert run("two", 2, *resume)[1] == pytest.approx(run("one", 1, *resume)[1], abs=2e-5)
