"""The shipped configs train on a card of 8 GB, alone and as one of several processes: an account without a card.

torch's fake tensors have a size and no content. What is counted: weights, gradients, optimizer state, what a
forward pass on full batches keeps for the backward pass, and the work space of the head and of one block.
"""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM
from gpt2_hf.model import modeling_gpt2_hf, packing
from gpt2_hf.model.chunked_loss import _ROWS_PER_CHUNK, _TOKENS_PER_WIDE_PRODUCT
from gpt2_hf.model.dropout import Dropout
from gpt2_hf.model.modeling_gpt2_hf import GPT2HFModel
from gpt2_hf.planning.cards import PEAKS
from gpt2_hf.planning.parallel_plan import ddp_memory_bytes, model_size

from ..conftest import REPOSITORY
from ..saved_tensors import SavedTensors

GIB = 2**30
ROOM = 7.5 * GIB
LENGTH, VOCABULARY = 1024, 50257
# The context of CUDA and its libraries, which torch does not count.
CONTEXT = 0.5 * GIB


def read_config(name):
    """A shipped config over the defaults."""
    base = json.loads((REPOSITORY / "training_args" / "base.json").read_text())
    return base | json.loads((REPOSITORY / "training_args" / f"{name}.json").read_text())


def make_model(config):
    """In fp32, as it is trained."""
    heads = config["num_heads"] or config["d_model"] // 64
    sizes = {"n_embd": config["d_model"], "n_layer": config["num_layers"], "n_head": heads}
    model = GPT2HFForCausalLM(GPT2HFConfig(vocab_size=VOCABULARY, **sizes)).train()
    if config["activation_checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def activations(model, num_samples):
    """Bytes that a forward pass on so many full samples keeps, with bf16 by autocast, beside the weights."""
    tokens = torch.zeros(1, num_samples * LENGTH, dtype=torch.long)
    batch = {"input_ids": tokens, "position_ids": tokens, "max_length_q": LENGTH}
    batch["cu_seq_lens_q"] = torch.zeros(num_samples + 1, dtype=torch.int32)
    saved = SavedTensors(model)
    with saved, torch.autocast("cpu", dtype=torch.bfloat16):
        model.transformer(**batch)
    return saved.nbytes


def account(config, processes):
    """Bytes at the peak of a step on the fullest batch there can be."""
    model, samples = make_model(config), config["batch_size"]
    size = model_size(model)
    steady = ddp_memory_bytes(size)  # one process holds as much, its gradients in no buckets
    width, tokens = config["d_model"], samples * LENGTH
    kept = activations(model, samples)
    if config["activation_checkpointing"]:
        kept += 2 * size.total  # autocast's copies of the weights, which are among what is kept otherwise
    # Beside them live the head's chunk as logits (the gradient is written over them) and exponentials, and the
    # gradient of its weight with a part of a product; or a block that is computed again.
    rows_of_product = VOCABULARY + _TOKENS_PER_WIDE_PRODUCT
    head = _ROWS_PER_CHUNK["cuda"] * VOCABULARY * (2 + 4) + 4 * rows_of_product * width
    block = activations(make_model(config | {"num_layers": 1, "activation_checkpointing": False}), samples)
    residual = 2 * 4 * tokens * width  # gradients of the residual stream, fp32
    # of DDP, a bucket
    sending = 25 * 2**20 if processes > 1 else 0
    return CONTEXT + steady + kept + max(head, block) + residual + sending


def as_on_a_card(monkeypatch):
    """A CPU's own ways are left aside: its dropout, its attention, and reading lengths."""
    monkeypatch.setattr(modeling_gpt2_hf, "missing_for_variable_lengths", lambda *args: None)
    monkeypatch.setattr(packing, "_on_the_host", lambda *args: None)
    monkeypatch.setattr(Dropout, "forward", torch.nn.Dropout.forward)
    monkeypatch.setattr(GPT2HFModel, "_check_positions", lambda *args: None)


@pytest.mark.parametrize("name", ["small", "base", "large"])
def test_a_shipped_config_fits_a_small_card(monkeypatch, name):
    """Batches as full as can be, all documents of 1,024 tokens, in bf16; also as one of two processes."""
    as_on_a_card(monkeypatch)
    with FakeTensorMode():
        needed = account(read_config(name), processes=2)
    print(f"{name}: {needed / GIB:.2f} GiB")
    assert needed <= ROOM


def test_the_table_of_cards_is_that_account(monkeypatch):
    """base.json with so many blocks at once takes what the table says, to half of its last digit."""
    as_on_a_card(monkeypatch)
    with FakeTensorMode():
        reckoned = {size: account(read_config("base") | {"batch_size": size}, 1) / GIB for size in PEAKS}
    assert reckoned == pytest.approx(PEAKS, abs=0.05)
