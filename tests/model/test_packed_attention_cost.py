"""One long document among short ones costs what its own tokens cost, on every device.

Tensors of the meta device have a shape and no content, as torch's fake tensors have: memory and arithmetic can be
counted, and a host that would wait to read a number gets an error.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM
from gpt2_hf.data.collators import FlatteningCollator
from gpt2_hf.model import modeling_gpt2_hf
from gpt2_hf.model.packing import _length_groups
from gpt2_hf.model.variable_length_attention import _missing_on_the_card, missing_for_variable_lengths

from ..saved_tensors import SavedTensors

UNEVEN, EVEN = [*[110] * 63, 1024], [118] * 64
SIZES = {"n_layer": 2, "n_head": 2, "vocab_size": 50}


def make_model(device, width=64, dtype=torch.float32, **options):
    """A small model with GPT-2's positions."""
    config = GPT2HFConfig(n_embd=width, **SIZES, **dict.fromkeys(("resid_pdrop", "embd_pdrop"), 0.0), **options)
    with torch.device(device):
        return GPT2HFForCausalLM(config).to(dtype).train()


def batch_of(lengths, device):
    """A flattened batch as the Trainer hands it over."""
    batch = FlatteningCollator()([{"input_ids": np.arange(n + 1) % 50} for n in lengths])
    batch.pop("shift_labels")
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}


def saved_bytes(model, lengths):
    """What a forward pass keeps for the backward pass, beside the weights; then the backward pass."""
    batch, saved = batch_of(lengths, model.device), SavedTensors(model)
    with saved:
        output = model.transformer(**batch).last_hidden_state
    output.sum().backward()
    return saved.nbytes


def two_products(query, *_, **__):
    """Of query and key, and of scores and value; the counter does not know torch's kernel for a CPU."""
    batch, heads, length, head_dim = query
    return 4 * batch * heads * length**2 * head_dim


def attention_flops(run):
    """Multiplications and additions of the products in attention, forward and backward."""
    cpu_kernel = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: two_products}
    with FlopCounterMode(display=False, custom_mapping=cpu_kernel) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for op, count in counts.items() if "attention" in str(op) or "bmm" in str(op))


def efficient_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    """The kernel that `scaled_dot_product_attention` takes on CUDA in fp32; on the meta device it takes none."""
    assert attn_mask is None and is_causal
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, dropout_p, is_causal, scale=scale
    )[0]


class KernelCalls(TorchDispatchMode):
    """Notes what the flash kernel gets."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket is torch.ops.aten._flash_attention_forward:
            self.shapes.append((tuple(args[0].shape), tuple(args[3].shape), args[5], args[7]))
        return func(*args, **(kwargs or {}))


def test_the_kernel_for_unequal_lengths_gets_every_token_once(monkeypatch):
    """In 16 bits on a card that has it: no padding in attention, dropout is kept, and no number is read."""
    monkeypatch.setattr(modeling_gpt2_hf, "missing_for_variable_lengths", lambda *args: None)
    model = make_model("meta", dtype=torch.bfloat16)
    with KernelCalls() as kernel:
        uneven = saved_bytes(model, UNEVEN)
    assert kernel.shapes == [((sum(UNEVEN), 2, 32), (65,), 1024, 0.1)] * 2
    assert uneven <= 1.15 * saved_bytes(model, EVEN)


def test_a_device_without_it_pads_to_documents_of_that_length(monkeypatch):
    """In fp32 on an accelerator: a few classes of length, known from the collator."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", efficient_attention)
    model = make_model("meta")
    assert saved_bytes(model, UNEVEN) <= 1.15 * saved_bytes(model, EVEN)
    per_layer = (4 + 10) * 2 * 32  # two products forward, five backward; heads; head size
    own = SIZES["n_layer"] * per_layer * sum(n * n for n in UNEVEN)
    assert own <= attention_flops(lambda: saved_bytes(model, UNEVEN)) <= 1.3 * own


@pytest.mark.parametrize(("backend", "train"), [("sdpa", True), ("sdpa", False), ("eager", True)])
def test_on_a_cpu_it_costs_its_own_tokens(backend, train):
    """Whichever kernel takes the documents, in training and in evaluation."""
    model = make_model("cpu", attn_implementation=backend, attn_pdrop=0.0).train(train)
    lengths = [*[28] * 15, 256]
    if backend == "sdpa":
        assert saved_bytes(model, lengths) <= 1.15 * saved_bytes(model, [43] * 16)
    with torch.no_grad():
        flops = attention_flops(lambda: model.transformer(**batch_of(lengths, "cpu"), use_cache=False))
    own = SIZES["n_layer"] * 4 * 2 * 32 * sum(n * n for n in lengths)
    assert 0.5 * own <= flops <= 1.3 * own  # the chunked kernel leaves out half of the future


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_few_and_waste_little(seed):
    """For lengths like those of lines of text: at most 1.3 times the documents, and far fewer classes."""
    random = np.random.default_rng(seed)
    lengths = np.minimum(random.lognormal(4.3, 1.2, size=64).astype(int) + 1, 1024)
    by_length = np.sort(lengths)[::-1]
    groups = _length_groups(by_length)
    assert [begin for begin, _, _ in groups] == [0, *(end for _, end, _ in groups[:-1])] and groups[-1][1] == 64
    for power in (1, 2):
        padded = sum((end - begin) * longest**power for begin, end, longest in groups)
        assert padded <= 1.3 * (by_length**power).sum()
    assert len(groups) <= 9


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_documents_in_classes_are_what_they_are_alone(backend):
    """Loss and gradients to 1e-5, in whatever order the lengths come; probabilities are given where they are asked."""
    model = make_model("cpu", attn_implementation=backend, attn_pdrop=0.0).eval()
    lengths = [3, 90, 4, 2, 60, 1, 61, 5]
    batch = batch_of(lengths, "cpu")
    documents = batch["input_ids"].split(lengths, dim=1)
    packed = model.transformer(**batch).last_hidden_state
    alone = torch.cat(
        [model.transformer(document, use_cache=False).last_hidden_state for document in documents], dim=1
    )
    assert (packed - alone).abs().max() <= 1e-5
    parameters = list(model.transformer.h.parameters())
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(0)) / packed.numel()
    grads = [torch.autograd.grad((x * weights).sum(), parameters) for x in (packed, alone)]
    assert all((a - b).abs().max() <= 1e-5 for a, b in zip(*grads, strict=True))
    if backend == "eager":
        probabilities = model.transformer(**batch, output_attentions=True).attentions
        assert [tuple(p.shape) for p in probabilities] == [(len(lengths), 2, 90, 90)] * 2


def test_lengths_on_the_host_must_be_those_of_the_row():
    """A wrong list, which the device would not notice, is refused."""
    batch = batch_of([5, 7], "meta") | {"document_lengths": [5, 6]}
    with pytest.raises(ValueError, match="12 tokens"):
        make_model("meta").transformer(**batch)


def test_what_the_kernel_does_not_take_is_named():
    """Another device, fp32, and head sizes."""
    assert "cpu has no kernel" in missing_for_variable_lengths("cpu", torch.bfloat16, 64)
    assert "16 bits" in missing_for_variable_lengths("cuda", torch.float32, 64)
    assert "size 60" in missing_for_variable_lengths("cuda", torch.bfloat16, 60)
    assert "size 256" in missing_for_variable_lengths("cuda", torch.float16, 256)


def test_a_compiler_does_not_ask_the_device(monkeypatch):
    """Each question would break its graph; the answer is one for the whole process."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))

    def ask(x):
        missing = missing_for_variable_lengths("cuda", torch.bfloat16, 64)
        return x + 1 if missing is None else x - 1

    _missing_on_the_card.cache_clear()
    try:
        assert torch.compile(ask, backend="eager", fullgraph=True)(torch.zeros(1)).item() == 1.0
    finally:
        _missing_on_the_card.cache_clear()


class Products(TorchDispatchMode):
    """Remembers the shapes of matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.shapes.add((func, *(tuple(x.shape) for x in args if isinstance(x, torch.Tensor))))
        return func(*args, **(kwargs or {}))


def test_lines_of_many_lengths_have_products_of_few_shapes():
    """On a CPU in 16 bits each new shape is a new kernel: the second half of 40 batches brings few."""
    model, lengths = make_model("cpu"), np.random.default_rng(0)
    seen = []
    for _ in range(40):
        batch = FlatteningCollator()([{"input_ids": np.arange(n + 1) % 50} for n in lengths.integers(2, 200, 8)])
        with Products() as products, torch.autocast("cpu", dtype=torch.bfloat16):
            model(**batch).loss.backward()
        seen.append(products.shapes)
    first, second = set().union(*seen[:20]), set().union(*seen[20:])
    assert len(second - first) < 0.25 * len(second) and len(first | second) < 250
