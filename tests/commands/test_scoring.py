"""`evaluate_model` from Python: samples and collators of the user's own."""

import pytest
import torch
from transformers import default_data_collator

from gpt2_hf import evaluate_model
from gpt2_hf.errors import UserError

from ..trainer.helpers import BLOCKS, COLLATORS, DOCUMENTS, make_model, true_loss


@pytest.mark.parametrize("collator", ["padded", "padding_free", "stock"])
def test_the_loss_is_exact_whose_collator_it_may_be(collator):
    """With targets that are shifted already, and with labels that the model shifts, of which some are not scored."""
    rows = BLOCKS[:11] if collator == "stock" else DOCUMENTS
    result = evaluate_model(make_model(), rows, COLLATORS[collator], batch_size=4)
    assert result["loss"] == pytest.approx(true_loss(make_model(), rows), abs=1e-5)
    assert result["tokens"] == sum(len(row["input_ids"]) - 1 for row in rows)


def test_labels_of_several_documents_in_a_row():
    """The first token of a document is not scored, though it has a label."""
    ids = torch.cat([torch.as_tensor(document["input_ids"]) for document in DOCUMENTS])[None]
    ends = torch.tensor([0, *(len(document["input_ids"]) for document in DOCUMENTS)]).cumsum(0).int()
    batch = {"input_ids": ids, "labels": ids, "cu_seq_lens_q": ends, "max_length_q": 32}
    result = evaluate_model(make_model(), [0], lambda rows: batch)
    assert result["loss"] == pytest.approx(true_loss(make_model(), DOCUMENTS), abs=1e-5)


def test_batches_without_labels_are_refused():
    """By one line that names what they need."""
    rows = [{"input_ids": row["input_ids"]} for row in BLOCKS]
    with pytest.raises(UserError, match="need `labels` or `shift_labels`"):
        evaluate_model(make_model(), rows, default_data_collator)
