"""What the tests read from the folders of runs, how they compare them, and runs that are cut short."""

import signal

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from gpt2_hf.checkpoints import folders
from gpt2_hf.trainer import gpt2_trainer as trainer_module

from .conftest import read_json


def untimed(entry):
    """A log entry or result without what depends on the clock and the machine."""
    timed = ("runtime", "per_second", "preparation_time", "memory", "hours")
    return {key: value for key, value in entry.items() if not any(word in key for word in timed)}


def history(folder):
    """The logged history of a run or checkpoint, without speeds."""
    entries = read_json(folder / "trainer_state.json")["log_history"]
    return [untimed(entry) for entry in entries if "train_runtime" not in entry]


def final_state(output_dir, step):
    """Weights, optimizer, scheduler and the state of each process, of a checkpoint."""
    folder = output_dir / folders.checkpoint_folder(step)
    state = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    assert {"model", "optimizer", "scheduler"} <= state.keys()
    return state


def assert_same_state(a, b):
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key in a[name]:
            assert torch.equal(a[name][key], b[name][key]), (name, key)


def make_checkpoint(run, step, content="weights", further=()):
    """A small committed checkpoint; `further` are names of files that it has besides."""
    staging = folders.open_staging(run, folders.checkpoint_folder(step))
    (staging / "model.safetensors").write_text(content)
    (staging / "config.json").write_text("{}")
    (staging / "trainer_state.json").write_text("{}")
    for name in further:
        (staging / name).parent.mkdir(exist_ok=True)
        (staging / name).write_text(f"{name} of step {step}")
    folders.commit(staging, run / folders.checkpoint_folder(step))
    return run / folders.checkpoint_folder(step)


def train_until_signal(output_dir, step, train_tiny, *options, event="on_step_begin"):
    """Train and send this process SIGTERM at an event of a step, as a cluster would."""

    class SignalAtStep(TrainerCallback):
        sent = False

        def heed(self, args, state, control, **kwargs):
            if state.global_step == step - 1 and not self.sent:
                self.sent = True
                signal.raise_signal(signal.SIGTERM)

    setattr(SignalAtStep, event, SignalAtStep.heed)

    original = trainer_module.GPT2HFTrainer.__init__

    def with_callback(self, *args, callbacks=None, **kwargs):
        original(self, *args, callbacks=[*(callbacks or []), SignalAtStep()], **kwargs)

    trainer_module.GPT2HFTrainer.__init__ = with_callback
    try:
        return train_tiny(output_dir, *options)
    finally:
        trainer_module.GPT2HFTrainer.__init__ = original
