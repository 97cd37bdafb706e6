"""Several documents in one row are what they would be alone, and nothing that would mix them is accepted."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DataCollatorWithFlattening
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..tiny_models import N_POSITIONS, SIZES, make_model, random_ids

TOLERANCE = 1e-5
LENGTHS = st.lists(st.integers(1, N_POSITIONS), min_size=1, max_size=6)


def make_documents(lengths):
    """Random documents of these lengths, `[1, L]` each."""
    return [random_ids(1, length, seed=i) for i, length in enumerate(lengths)]


def pack(documents, style="cu_seq_lens"):
    """One row with all documents, told apart by cumulative lengths or by positions that restart."""
    lengths = [document.shape[1] for document in documents]
    row = {"input_ids": torch.cat(documents, dim=1)}
    if style == "positions":
        return row | {"position_ids": torch.cat([torch.arange(n) for n in lengths])[None]}
    cu_seq_lens = torch.tensor([0, *lengths]).cumsum(0).int()
    return row | {"cu_seq_lens_q": cu_seq_lens, "max_length_q": max(lengths)}


MODELS = {backend: make_model(backend) for backend in ("eager", "sdpa", "flex_attention")}


def packing_error(model, documents, style):
    """The largest difference between packed logits and those of the documents alone."""
    packed = model(**pack(documents, style)).logits
    alone = torch.cat([model(document, use_cache=False).logits for document in documents], dim=1)
    return (packed - alone).abs().max()


@pytest.mark.parametrize("style", ["cu_seq_lens", "positions"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@settings(max_examples=15)
@given(lengths=LENGTHS)
@torch.no_grad()
def test_packed_logits_equal_separate_documents(backend, style, lengths):
    """In both conventions, packed logits are those of each document alone to 1e-5, whatever the lengths."""
    assert packing_error(MODELS[backend], make_documents(lengths), style) <= TOLERANCE


@pytest.mark.parametrize("style", ["cu_seq_lens", "positions"])
@torch.no_grad()
def test_packed_flex_equals_separate_documents(style):
    """flex_attention keeps documents apart as well; unfused, since compiling its kernel takes half a minute."""
    with torch.compiler.set_stance("force_eager"):
        assert packing_error(MODELS["flex_attention"], make_documents([5, 1, N_POSITIONS, 9]), style) <= TOLERANCE


@pytest.mark.parametrize("lengths", [[5, 1, 9], [N_POSITIONS, 9]])
@torch.no_grad()
def test_a_backend_that_takes_lengths_gets_positions_that_restart(monkeypatch, lengths):
    """A stand-in for the flash kernels, which keep documents apart by their lengths alone."""

    def by_lengths(module, query, key, value, attention_mask, cu_seq_lens_q, max_length_q, **kwargs):
        assert attention_mask is None and max_length_q == max(lengths)
        assert kwargs.get("position_ids") is None  # in which transformers would look for documents, with a wait
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                *(x[:, :, begin:end] for x in (query, key, value)), is_causal=True
            )
            for begin, end in itertools.pairwise(cu_seq_lens_q.tolist())
        ]
        return torch.cat(parts, dim=2).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_stand_in", by_lengths)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, "flash_stand_in", lambda *args, **kwargs: None)
    model, documents = make_model(), make_documents(lengths)
    alone = torch.cat([model(document).logits for document in documents], dim=1)
    model.config._attn_implementation = "flash_stand_in"
    assert (model(**pack(documents)).logits - alone).abs().max() <= TOLERANCE


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("target", ["labels", "shift_labels"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_packed_gradients_equal_separate_documents(backend, target, checkpointing):
    """Loss and gradients of a packed training step are those of the documents one by one."""
    documents = make_documents([5, 1, 17, 2])
    num_items = sum(document.shape[1] - 1 for document in documents)
    model = make_model(backend).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    losses = 0
    for document in documents:
        loss = model(document, labels=document, num_items_in_batch=num_items).loss
        loss.backward()
        losses += loss.detach()
    alone = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    batch = pack(documents)
    if target == "labels":
        batch["labels"] = batch["input_ids"]
    else:
        shifted = [torch.nn.functional.pad(d[:, 1:], (0, 1), value=-100) for d in documents]
        batch["shift_labels"] = torch.cat(shifted, dim=1)
    loss = model(**batch).loss
    loss.backward()
    assert (loss - losses).abs() <= TOLERANCE
    for name, parameter in model.named_parameters():
        assert (parameter.grad - alone[name]).abs().max() <= TOLERANCE, name


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@settings(max_examples=15)
@given(lengths=LENGTHS.filter(lambda lengths: len(lengths) > 1), data=st.data())
@torch.no_grad()
def test_a_document_does_not_see_another(backend, lengths, data):
    """Exchanging one document leaves every other document's logits unchanged, bit for bit."""
    model, documents = MODELS[backend], make_documents(lengths)
    changed = data.draw(st.integers(0, len(lengths) - 1))
    before = model(**pack(documents)).logits.split(lengths, dim=1)
    documents[changed] = random_ids(1, lengths[changed], seed=99)
    after = model(**pack(documents)).logits.split(lengths, dim=1)
    for i in range(len(lengths)):
        assert i == changed or torch.equal(before[i], after[i])


@torch.no_grad()
def test_a_row_may_be_longer_than_the_positions():
    """Only the longest document must fit into n_positions, not the packed row."""
    documents = make_documents([N_POSITIONS] * 3)
    MODELS["sdpa"](**pack(documents))
    with pytest.raises(ValueError, match="n_positions"):
        MODELS["sdpa"](**pack([random_ids(1, N_POSITIONS + 1), random_ids(1, 3)]))


@pytest.mark.parametrize("style", ["cu_seq_lens", "positions"])
@pytest.mark.parametrize("leak", ["attention_mask", "past_key_values", "use_cache"])
def test_what_would_leak_is_refused(style, leak):
    """A packed row together with a mask or a cache raises a ValueError that names it."""
    model = MODELS["sdpa"]
    documents = make_documents([5, 7])
    batch = pack(documents, style)
    batch[leak] = {
        "attention_mask": torch.ones(1, 12, dtype=torch.long),
        "past_key_values": model(random_ids(1, 2), use_cache=True).past_key_values,
        "use_cache": True,
    }[leak]
    if leak == "past_key_values":
        batch["attention_mask"] = None
    with pytest.raises(ValueError, match=leak):
        model(**batch)
    assert MODELS["sdpa"](**pack(documents, style)).past_key_values is None


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[5, 7], [N_POSITIONS - 2, 9]])
def test_compiled_positions_that_restart_still_isolate(lengths):
    """Compiled, where positions cannot be looked at, the documents are kept apart; the row may be long."""
    torch._dynamo.reset()
    model, documents = MODELS["sdpa"], make_documents(lengths)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    packed = compiled(**pack(documents, "positions")).logits
    alone = torch.cat([model(document).logits for document in documents], dim=1)
    assert (packed - alone).abs().max() <= TOLERANCE


@torch.no_grad()
def test_positions_of_padded_rows_are_not_mistaken_for_packing():
    """A mask with the positions that generate makes, on the left or on the right, is accepted as ever."""
    ids = random_ids(2, 6)
    for mask in ([[0, 0, 1, 1, 1, 1], [1] * 6], [[1, 1, 1, 0, 0, 0], [1] * 6]):
        attention_mask = torch.tensor(mask)
        for filler in (0, 1):
            positions = (attention_mask.cumsum(1) - 1).masked_fill(attention_mask == 0, filler)
            MODELS["sdpa"](ids, attention_mask=attention_mask, position_ids=positions, use_cache=True)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_length_q": None}, "max_length_q"),
        ({"max_length_q": 4}, "max_length_q"),
        ({"cu_seq_lens_q": torch.tensor([0, 5, 11], dtype=torch.int32)}, "12 tokens"),
        ({"cu_seq_lens_q": torch.tensor([1, 5, 12], dtype=torch.int32)}, "12 tokens"),
        ({"cu_seq_lens_q": torch.tensor([0, 7, 5, 12], dtype=torch.int32)}, "cu_seq_lens_q"),
        ({"cu_seq_lens_q": torch.tensor([0, 5, 5, 12], dtype=torch.int32)}, "cu_seq_lens_q"),
        ({"input_ids": random_ids(2, 12)}, "one row"),
    ],
)
def test_lengths_that_do_not_describe_the_row_are_refused(wrong, named):
    """Cumulative lengths that do not fit the row raise a ValueError instead of mixing tokens."""
    with pytest.raises(ValueError, match=named):
        MODELS["sdpa"](**(pack(make_documents([5, 7])) | wrong))


@pytest.mark.parametrize("flash_kwargs", [False, True])
def test_the_collator_of_transformers_works(flash_kwargs):
    """DataCollatorWithFlattening's batches, with and without flash arguments, give the separate documents' loss."""
    model = make_model().train()
    documents = make_documents([5, 1, 9])
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=flash_kwargs)
    batch = collator([{"input_ids": document[0].tolist()} for document in documents])
    num_items = 4 + 8
    alone = sum(model(d, labels=d, num_items_in_batch=num_items).loss for d in documents)
    assert (model(**batch).loss - alone).abs() <= TOLERANCE


@torch.no_grad()
def test_hidden_states_keep_the_row():
    """output_hidden_states gives the packed row's own order and length."""
    documents = make_documents([5, 7])
    states = MODELS["sdpa"](**pack(documents), output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(1, 12, SIZES["n_embd"])] * (SIZES["n_layer"] + 1)
