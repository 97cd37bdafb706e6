"""A common embedding for the tokens that a text does not use changes what the head costs, and nothing else."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt2_hf import GPT2HFForCausalLM
from gpt2_hf.__main__ import main
from gpt2_hf.errors import UserError
from gpt2_hf.model import chunked_loss
from gpt2_hf.model.chunked_loss import IGNORE_INDEX
from gpt2_hf.model.unused_tokens import UnusedTokens
from gpt2_hf.options.arguments import ModelArguments
from gpt2_hf.options.parsing import parse

from ..conftest import read_json
from ..runs import assert_same_state, final_state, history
from ..tiny_models import VOCAB_SIZE, make_model

USED = torch.cat([torch.arange(3, 40), torch.tensor([VOCAB_SIZE - 1])])


def batch(seed):
    """Ids of the used tokens, and targets of which some are not scored."""
    generator = torch.Generator().manual_seed(seed)
    ids = USED[torch.randint(0, len(USED), (4, 21), generator=generator)]
    targets = ids[:, 1:].clone()
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = IGNORE_INDEX
    return {"input_ids": ids[:, :-1], "shift_labels": targets}


def pair(padding=0):
    """A model that trains the whole head and its twin that does not, with the same weights."""
    whole, tied = (make_model().train() for _ in range(2))
    for model in (whole, tied):
        if padding:
            model.resize_token_embeddings(VOCAB_SIZE, pad_to_multiple_of=padding)
        assert model.tie_unused_tokens(USED) == VOCAB_SIZE - len(USED)
    whole.unused_tokens = None
    tied.load_state_dict(whole.state_dict())
    return whole, tied


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("padding", [0, 64])
def test_loss_and_gradients_are_those_of_the_whole_head(label_smoothing, padding):
    """To 1e-5, for the embedding of a token that is not used too; rows that pad the vocabulary stay out of it."""
    whole, tied = pair(padding)
    assert tied.num_head_rows == len(USED) + 1 and whole.num_head_rows == whole.config.vocab_size
    losses = [model(**batch(0), label_smoothing=label_smoothing).loss for model in (whole, tied)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(whole.named_parameters(), tied.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=0, msg=name)
    unused = tied.unused_tokens.unused
    assert whole.lm_head.weight.grad[unused].abs().min() > 0


def test_rows_that_pad_the_vocabulary_have_no_gradient():
    """Nor what stood in its memory before."""
    _, tied = pair(padding=64)
    torch.use_deterministic_algorithms(True)  # memory that nobody has written to is NaN then
    try:
        tied(**batch(0)).loss.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    grad = tied.lm_head.weight.grad
    assert grad.isfinite().all() and not grad[VOCAB_SIZE:].any() and len(grad) > VOCAB_SIZE


def test_training_goes_the_same_way():
    """Forty steps of AdamW with weight decay, in fp64: the same losses and weights, and the tied rows stay alike."""
    whole, tied = (model.double() for model in pair())
    losses = []
    for model in (whole, tied):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, fused=True)
        losses.append([])
        for step in range(40):
            loss = model(**batch(step)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], abs=1e-10) and losses[0][-1] < losses[0][0] - 0.5
    for (name, one), other in zip(whole.named_parameters(), tied.named_parameters(), strict=True):
        torch.testing.assert_close(one, other[1], atol=1e-10, rtol=0, msg=name)
    rows = tied.lm_head.weight[tied.unused_tokens.unused]
    torch.testing.assert_close(rows, rows[:1].expand_as(rows), atol=1e-12, rtol=0)


def test_evaluation_and_logits_are_of_the_whole_vocabulary():
    """In evaluation mode any token may be a target, with gradients and without, and every token has a logit."""
    whole, tied = (model.eval() for model in pair())
    ids = torch.randint(0, VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.isin(ids, tied.unused_tokens.unused).any()
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            one, other = (model(ids, labels=ids) for model in (whole, tied))
        assert other.logits.shape == (2, 9, VOCAB_SIZE)
        torch.testing.assert_close(one.loss, other.loss, atol=0 if gradients else 1e-5, rtol=0)
        assert torch.equal(one.logits, other.logits)


def test_evaluation_multiplies_with_the_compact_head():
    """Without gradients, scoring costs what the tied head costs."""
    _, tied = pair()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tied.eval()(**batch(0), return_logits=False)
    with torch.no_grad(), FlopCounterMode(display=False) as trained:
        tied.train()(**batch(0))
    assert counter.get_total_flops() == trained.get_total_flops()


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unused_token_as_a_target_is_an_error(dtype, multiple, monkeypatch):
    """Training on other tokens than were promised ends, in 16 bits with a head made longer for the device too."""
    monkeypatch.setitem(chunked_loss._HEAD_ROWS_MULTIPLE_OF, "cpu", multiple)
    _, tied = pair()
    tied.to(dtype)
    assert torch.isfinite(tied(**batch(0)).loss)
    wrong = batch(0)
    wrong["shift_labels"][0, 0] = 50
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        tied(**wrong)


def test_impossible_ids_are_refused_and_nothing_to_tie_is_nothing_done():
    """An id outside the vocabulary is an error; a text that uses every token leaves the model as it is."""
    with pytest.raises(ValueError, match=r"must be in \[0, 97\)"):
        UnusedTokens(torch.tensor([0, 97]), 97)
    model = make_model()
    before = model.lm_head.weight.clone()
    assert model.tie_unused_tokens(torch.arange(VOCAB_SIZE)) == 0
    assert model.unused_tokens is None and torch.equal(model.lm_head.weight, before)


def test_a_resized_vocabulary_is_trained_whole_again():
    """New tokens are there to be used: none of them is taken for unused."""
    _, tied = pair()
    tied.resize_token_embeddings(VOCAB_SIZE + 3)
    assert tied.num_head_rows == VOCAB_SIZE + 3
    new = torch.full((1, 4), VOCAB_SIZE + 1)
    assert torch.isfinite(tied(new, labels=new).loss)


def test_the_job_ties_and_saves_an_ordinary_model(train_tiny, tmp_path, capsys):
    """A line says how many; the saved model holds all rows, alike where unused; resumed, it goes on bit for bit."""
    options = ("--tie_unused_tokens", "--optim", "muon")
    constant = ("--lr_scheduler_type", "constant")
    assert train_tiny(tmp_path / "uncut", *options, *constant, "--verbose") == 0
    assert "tokens are not in the training text and share one embedding" in capsys.readouterr().out
    model = GPT2HFForCausalLM.from_pretrained(tmp_path / "uncut" / "best_model")
    assert model.unused_tokens is None and model.lm_head.weight.shape[0] == 384
    _, counts = model.lm_head.weight.detach().mul(1e5).round().unique(dim=0, return_counts=True)
    assert counts.max() > 50
    assert read_json(tmp_path / "uncut" / "resolved_config.json")["tie_unused_tokens"] is True

    assert train_tiny(tmp_path / "cut", *options, *constant, "--max_steps", "10") == 0
    assert train_tiny(tmp_path / "cut", *options, *constant, "--resume_from", "latest") == 0
    assert_same_state(*(final_state(tmp_path / run, 25) for run in ("cut", "uncut")))
    assert history(tmp_path / "cut") == history(tmp_path / "uncut")


def test_a_run_keeps_the_option_when_resumed(train_tiny, tmp_path, capsys):
    """Rows that were not alike from the start may not be taken for alike."""
    assert train_tiny(tmp_path / "run", "--max_steps", "4") == 0
    assert train_tiny(tmp_path / "run", "--resume_from", "latest", "--tie_unused_tokens") == 2
    assert "--tie_unused_tokens was False and cannot become True" in capsys.readouterr().err


def test_a_stream_is_refused(tmp_path, tiny_options, capsys):
    """It is not known beforehand."""
    words = [word for word in tiny_options if word not in ("--max_train_samples", "200")]
    options = ("--tie_unused_tokens", "--streaming", "--max_steps", "5", "--checkpoint_dir", str(tmp_path / "run"))
    assert main(["train", *words, *options]) == 2
    assert "needs to know all the text beforehand" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_trained_weights_are_refused(tmp_path):
    """They have rows of their own. What a config file says of new models is overruled, as their size is."""
    with pytest.raises(UserError, match="is for new models"):
        ModelArguments(model_name_or_path="gpt2", tie_unused_tokens=True)
    weights = ["--model_name_or_path", "gpt2"]
    with pytest.raises(UserError, match="--tie_unused_tokens has no effect beside --model_name_or_path"):
        parse([ModelArguments], [*weights, "--tie_unused_tokens"])
    config = tmp_path / "config.json"
    config.write_text('{"d_model": 64, "tie_unused_tokens": true}')
    (model_args,) = parse([ModelArguments], weights, str(config)).values
    assert not model_args.tie_unused_tokens


def test_a_compiled_step_is_the_same():
    """As one graph, without a break: the same loss and gradients."""
    whole, tied = pair()
    for model, forward in ((whole, whole), (tied, torch.compile(tied, backend="aot_eager", fullgraph=True))):
        forward(**batch(0), num_items_in_batch=64).loss.backward()
        assert model.lm_head.weight.grad is not None
    torch.testing.assert_close(tied.lm_head.weight.grad, whole.lm_head.weight.grad, atol=1e-5, rtol=0)
