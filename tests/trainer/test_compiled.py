"""A compiled run has few graphs, whatever the lengths of its batches, and learns what an uncompiled one does."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from gpt2_hf.data.collators import FlatteningCollator, PaddingCollator
from gpt2_hf.model import chunked_loss

from ..tiny_models import N_POSITIONS, VOCAB_SIZE, make_model
from .test_gpt2_trainer import load, make_trainer, tokenizer  # noqa: F401

COLLATORS = {"padded": PaddingCollator(0), "padding_free": FlatteningCollator()}


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch):
    monkeypatch.setitem(chunked_loss._ROWS_PER_CHUNK, "cpu", 32)  # or these batches would be one chunk
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make_batch(collator, num_samples, random):
    """Samples of random lengths."""
    lengths = random.integers(2, N_POSITIONS + 2, num_samples)
    return collator([{"input_ids": random.integers(0, VOCAB_SIZE - 1, length)} for length in lengths])


@pytest.mark.parametrize("mode", COLLATORS)
def test_a_stream_of_lengths_makes_three_graphs_at_most(mode):
    """200 batches of random lengths, in training and evaluation, the last of a split smaller; with dropout."""
    random, counter = np.random.default_rng(0), CompileCounter()
    model = make_model(n_layer=1, **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1))
    compiled = torch.compile(model, backend=counter, dynamic=True)
    for step in range(200):
        if step % 10 < 8:
            model.train()
            batch = make_batch(COLLATORS[mode], 8, random)
            compiled(**batch, num_items_in_batch=torch.tensor(100)).loss.backward()
        else:
            model.eval()
            with torch.no_grad():
                batch = make_batch(COLLATORS[mode], int(random.integers(1, 9)), random)
                compiled(**batch, num_items_in_batch=1, return_logits=False)
    assert counter.frame_count <= 3


@pytest.mark.parametrize("mode", ["padded", "padding_free", "blocks"])
def test_a_compiled_run_learns_the_same_with_few_graphs(tmp_path, load, tokenizer, mode):  # noqa: F811
    """With accumulation, evaluations and a resumption: three graphs at most, and the losses of a run without any."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "eval_strategy": "steps"}
    options |= {"eval_steps": 2, "save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
    data, compiled = load(mode), {"torch_compile_backend": "eager"}
    make_trainer(tmp_path / "compiled", data, tokenizer, **options, **compiled, max_steps=4).train()
    resumed = make_trainer(tmp_path / "compiled", data, tokenizer, **options, **compiled, max_steps=8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "compiled" / "checkpoint-4"))
    assert 1 <= counters["stats"]["unique_graphs"] <= 3
    counters.clear()
    plain = make_trainer(tmp_path / "plain", data, tokenizer, **options, max_steps=8)
    plain.train()
    assert counters["stats"]["unique_graphs"] == 0
    history = [
        [entry.get("loss", entry.get("eval_loss")) for entry in trainer.state.log_history][:12]
        for trainer in (resumed, plain)
    ]
    assert history[0] == pytest.approx(history[1], rel=1e-5)
