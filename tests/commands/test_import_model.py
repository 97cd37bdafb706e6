"""What nanoGPT and llm.c wrote computes the same logits here, and a wrong file is refused in one line."""

import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from gpt2_hf import GPT2HFForCausalLM, load_tokenizer
from gpt2_hf.__main__ import main
from gpt2_hf.commands import foreign_models, import_model
from gpt2_hf.commands.import_model import converted_weights

from ..tiny_models import VOCAB_SIZE, make_stock, random_ids
from .foreign_files import nanogpt_checkpoint, write_llm_c

TINY = {"n_embd": 16, "n_layer": 2}
GPT2_VOCABULARY = {**TINY, "vocab_size": 50257, "bos_token_id": 50256, "eos_token_id": 50256}


def without_biases(stock: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The same model with zero biases."""
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
    return stock


@pytest.fixture
def run_import(tmp_path):
    """Import a checkpoint or a file by the command, and return the exit code."""

    def run(source, *options):
        path = tmp_path / "ckpt.pt"
        if isinstance(source, dict):
            torch.save(source, path)
        else:
            path = source
        return main(["import", "--model_path", str(path), "--output_dir", str(tmp_path / "imported"), *options])

    return run


@torch.no_grad()
def assert_same_logits(folder, stock):
    """The imported model's logits are those of the stock model with the same weights."""
    ids = random_ids(2, 11)
    ours = GPT2HFForCausalLM.from_pretrained(folder).eval()
    assert (ours(ids).logits[..., : stock.config.vocab_size] - stock(ids).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_a_nanogpt_checkpoint_computes_the_same(tmp_path, run_import, capsys, prefix, bias):
    """With and without biases, compiled or not, of any size: the logits are nanoGPT's, whose GELU is exact."""
    stock = make_stock(activation_function="gelu", n_embd=24, n_head=3, n_positions=20)
    stock = stock if bias else without_biases(stock)
    assert run_import(nanogpt_checkpoint(stock, prefix, bias)) == 0
    assert_same_logits(tmp_path / "imported", stock)
    printed = capsys.readouterr().out
    assert "(nanoGPT) is imported to" in printed and "its logits differ by" in printed
    assert f"its {VOCAB_SIZE} ids are not GPT-2's" in printed and "--tokenizer_name" in printed
    config = GPT2HFForCausalLM.from_pretrained(tmp_path / "imported").config
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.2
    assert (config.bos_token_id, config.eos_token_id) == (None, None)


def test_an_old_nanogpt_checkpoint_has_the_other_gelu(tmp_path, run_import):
    """Before June 2023 nanoGPT computed the tanh approximation; its mask buffers are no weights."""
    stock = make_stock()
    checkpoint = nanogpt_checkpoint(stock)
    del checkpoint["model_args"]["bias"], checkpoint["model_args"]["dropout"]
    for layer in range(stock.config.n_layer):
        checkpoint["model"][f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    assert run_import(checkpoint, "--activation_function", "gelu_new") == 0
    assert_same_logits(tmp_path / "imported", stock)


def test_a_padded_vocabulary_is_gpt2s(tmp_path, run_import):
    """50,304 rows are GPT-2's 50,257 tokens and 47 rows of padding; its tokenizer is saved, and it generates."""
    stock = make_stock(activation_function="gelu", **{**GPT2_VOCABULARY, "vocab_size": 50304})
    assert run_import(nanogpt_checkpoint(stock)) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "imported")
    assert (model.config.vocab_size, model.config.n_vocab_padding, model.config.eos_token_id) == (50304, 47, 50256)
    new = tmp_path / "new"
    new.touch()
    assert {path.stat().st_mode for path in (tmp_path / "imported").iterdir()} == {new.stat().st_mode}
    ids = random_ids(1, 7)
    with torch.no_grad():
        assert (model(ids).logits - stock(ids).logits)[..., :50257].abs().max() <= 1e-5
    options = ["--prompt", "Hello", "--max_new_tokens", "3", "--temperature", "0"]
    assert main(["generate", "--model_path", str(tmp_path / "imported"), *options]) == 0


def test_an_untied_head_stays_untied(tmp_path, run_import):
    """A nanoGPT without weight tying keeps its own head; a checkpoint without the head is tied."""
    stock = make_stock(activation_function="gelu", tie_word_embeddings=False)
    assert run_import(nanogpt_checkpoint(stock)) == 0
    assert_same_logits(tmp_path / "imported", stock)
    tied = make_stock(activation_function="gelu")
    checkpoint = nanogpt_checkpoint(tied)
    del checkpoint["model"]["lm_head.weight"]
    assert run_import(checkpoint, "--output_dir", str(tmp_path / "tied")) == 0
    assert_same_logits(tmp_path / "tied", tied)


@pytest.mark.parametrize("version", [3, 5])
def test_an_llm_c_model_computes_the_same(tmp_path, run_import, version):
    """fp32 and bf16: the logits are those of the same weights, the padding of the vocabulary is known as such."""
    stock = make_stock()
    write_llm_c(tmp_path / "model.bin", stock, version)
    if version == 5:
        stock = stock.to(torch.bfloat16).float()
    assert run_import(tmp_path / "model.bin") == 0
    assert_same_logits(tmp_path / "imported", stock)
    config = GPT2HFForCausalLM.from_pretrained(tmp_path / "imported").config
    assert (config.vocab_size, config.num_tokens, config.activation_function) == (128, VOCAB_SIZE, "gelu_new")


def test_an_imported_model_is_evaluated_exported_and_trained_further(
    tmp_path, run_import, tokenizer_folder, tiny_options, corpus_folder
):
    """With a tokenizer of its own it also generates."""
    stock = make_stock(activation_function="gelu", n_embd=16, vocab_size=400)
    assert run_import(nanogpt_checkpoint(stock), "--tokenizer_name", str(tokenizer_folder)) == 0
    folder = str(tmp_path / "imported")
    assert GPT2HFForCausalLM.from_pretrained(folder).config.num_tokens == 384
    model = ["--model_path", folder]
    assert main(["evaluate", *model, "--test_file", str(corpus_folder / "test.txt")]) == 0
    assert main(["generate", *model, "--prompt", "A", "--max_new_tokens", "2"]) == 0
    assert main(["export", *model, "--output_dir", str(tmp_path / "exported")]) == 0
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "exported").config.activation_function == "gelu"
    sizes = ("--d_model", "--num_layers", "--num_heads")
    options = [
        *(x for i, x in enumerate(tiny_options) if x not in sizes and (not i or tiny_options[i - 1] not in sizes)),
        *("--model_name_or_path", folder, "--checkpoint_dir", str(tmp_path / "run"), "--max_steps", "2"),
    ]
    assert main(["train", *options]) == 0


def test_a_checkpoint_that_runs_code_is_refused(tmp_path, run_import, capsys):
    """A pickle with a call in it is not run."""

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    checkpoint = {**nanogpt_checkpoint(make_stock(**TINY)), "config": Trap()}
    assert run_import(checkpoint) == 2
    error = capsys.readouterr().err
    assert "may run code" in error and error.count("\n") == 1
    assert not (tmp_path / "ran").exists() and not (tmp_path / "imported").exists()


def _changed(**changes):
    """A change of the checkpoint's model_args."""
    return lambda checkpoint: checkpoint["model_args"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda checkpoint: checkpoint["model_args"].pop("n_head"), "model_args lack n_head"),
        (lambda checkpoint: checkpoint.pop("model_args"), "no nanoGPT checkpoint: it lacks model and model_args"),
        (lambda checkpoint: checkpoint.update(model_args=[1]), "model_args is no dictionary"),
        (lambda checkpoint: checkpoint.update(model=[1]), "model is no state_dict"),
        (
            lambda checkpoint: checkpoint["model"].pop("transformer.h.1.ln_2.weight"),
            "lacks the weight transformer.h.1",
        ),
        (lambda checkpoint: checkpoint["model"].update(extra=torch.ones(1)), "the weight extra"),
        (_changed(n_head=3), "its sizes make no GPT-2"),
        (_changed(n_layer="2"), "n_layer in its model_args must be a positive integer"),
        (_changed(block_size=64), "transformer.wpe.weight has the shape [32, 16], its model_args ask for [64, 16]"),
    ],
)
def test_another_checkpoint_is_refused_in_one_line(tmp_path, run_import, capsys, change, message):
    """What is no nanoGPT checkpoint, or lacks something, is named."""
    checkpoint = nanogpt_checkpoint(make_stock(**TINY))
    change(checkpoint)
    assert run_import(checkpoint) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "--model_path" in error
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[: len(data) // 2], "its header asks for"),
        (lambda data: data[:500], "not even its header is complete"),
        (lambda data: data + b"\0", "its header asks for"),
        (lambda data: (20240327).to_bytes(4, "little") + data[4:], "neither a nanoGPT checkpoint"),
        (lambda data: data[:4] + (1).to_bytes(4, "little") + data[8:], "of version 1"),
        (lambda data: data[:16] + (0).to_bytes(4, "little") + data[20:], "sizes in its header are impossible"),
        (lambda data: data[:20] + (7).to_bytes(4, "little") + data[24:], "its sizes make no GPT-2"),
        (lambda data: b"", "neither a nanoGPT checkpoint"),
    ],
)
def test_a_damaged_llm_c_file_is_refused_in_one_line(tmp_path, run_import, capsys, spoil, message):
    """Cut, longer than its header says, of another magic number, version or size."""
    path = tmp_path / "model.bin"
    write_llm_c(path, make_stock(**TINY))
    path.write_bytes(spoil(path.read_bytes()))
    assert run_import(path) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "--model_path" in error
    assert not (tmp_path / "imported").exists()


def test_other_files_are_refused_in_one_line(tmp_path, run_import, capsys):
    """A cut checkpoint, a pickle, a folder, nothing; and an option that has no effect."""
    torch.save(nanogpt_checkpoint(make_stock(**TINY)), tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"stoi": {}}))
    write_llm_c(tmp_path / "model.bin", make_stock(**TINY))
    for name, message, options in (
        ("cut.pt", "cut short or damaged", ()),
        ("meta.pkl", "neither a nanoGPT checkpoint", ()),
        (".", "is a folder; give the file in it", ()),
        ("nowhere.pt", "cannot be read (No such file", ()),
        ("~nosuch/ckpt.pt", "cannot be read (No such file", ()),
        ("model.bin", "--activation_function has no effect", ("--activation_function", "gelu")),
    ):
        assert run_import(tmp_path / name if name[0] != "~" else name, *options) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "imported").exists()


def test_nothing_is_written_over_or_left_behind(tmp_path, run_import, capsys, monkeypatch, tokenizer_folder):
    """A folder in use is refused; a tokenizer that does not fit, or an import that went wrong, leaves nothing."""
    checkpoint = nanogpt_checkpoint(make_stock(**TINY))
    assert run_import(checkpoint, "--tokenizer_name", str(tokenizer_folder)) == 2
    assert "--tokenizer_name" in capsys.readouterr().err

    def shifted_weights(foreign):
        return {name: weight + 1e-3 for name, weight in converted_weights(foreign).items()}

    with monkeypatch.context() as patch:
        patch.setattr(import_model, "converted_weights", shifted_weights)
        with pytest.raises(RuntimeError, match="nothing was imported"):
            run_import(checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]
    assert run_import(checkpoint) == 0
    assert run_import(checkpoint) == 2
    assert "--output_dir" in capsys.readouterr().err


@torch.no_grad()
def test_the_forward_in_the_files_layout_is_gpt2s(tmp_path):
    """What the import is compared with is itself right: stock GPT-2's logits, without this package's model."""
    stock = make_stock()
    write_llm_c(tmp_path / "model.bin", stock)
    foreign = foreign_models.read_foreign_model(tmp_path / "model.bin")
    ids = random_ids(3, 32)
    assert (foreign.logits(ids)[..., :VOCAB_SIZE] - stock(ids).logits).abs().max() <= 1e-5


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    """Where the path leads through a file, say."""
    (tmp_path / "file").write_text("")
    write_llm_c(tmp_path / "model.bin", make_stock(**TINY))
    folder = tmp_path / "file" / "model"
    assert main(["import", "--model_path", str(tmp_path / "model.bin"), "--output_dir", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "--output_dir:" in err and "cannot be written (" in err and err.count("\n") == 1


def test_the_tokenizer_is_gpt2s(tmp_path, run_import):
    """llm.c's 50,257 tokens get GPT-2's tokenizer without being asked."""
    write_llm_c(tmp_path / "model.bin", make_stock(**GPT2_VOCABULARY))
    assert run_import(tmp_path / "model.bin") == 0
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "imported")
    assert tokenizer.get_vocab() == load_tokenizer().get_vocab()
    assert tokenizer.model_max_length == 32  # the model's, not GPT-2's
