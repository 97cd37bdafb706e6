"""gpt2_hf.data.tokenizer_training: a tokenizer of one's own, that writes any text and fits a model."""

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from gpt2_hf.commands.model_loading import build_config
from gpt2_hf.commands.text_units import TextUnits
from gpt2_hf.data import encoding, tokenizer_training
from gpt2_hf.data.tokenizer import END_OF_TEXT, load_tokenizer
from gpt2_hf.data.tokenizer_training import TokenizerTrainingArguments, run_tokenizer_training
from gpt2_hf.errors import UserError
from gpt2_hf.options.arguments import ModelArguments


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tokenizer of 600 ids, learned from the language reference, and its folder."""
    folder = tmp_path_factory.mktemp("tokenizer") / "own"
    arguments = TokenizerTrainingArguments(dataset_name="python-docs", vocab_size=600, output_dir=str(folder))
    assert run_tokenizer_training(arguments) == 0
    return load_tokenizer(str(folder)), folder


@given(text=st.text())
def test_any_text_comes_back(trained, text):
    """Byte-level BPE writes any text, seen before or not."""
    tokenizer, _ = trained
    assert tokenizer.decode(tokenizer(text).input_ids, clean_up_tokenization_spaces=False) == text


def test_size_and_special_tokens_reach_the_model(trained):
    """The vocabulary has the size that was asked for; size and end of text are in the model's config."""
    tokenizer, _ = trained
    assert len(tokenizer) == 600
    config = build_config(ModelArguments(d_model=64), tokenizer)
    assert config.vocab_size == 600
    assert config.eos_token_id == config.bos_token_id == tokenizer.convert_tokens_to_ids(END_OF_TEXT)


def test_it_is_deterministic(trained, tmp_path):
    """The same text gives the same tokenizer."""
    arguments = TokenizerTrainingArguments(dataset_name="python-docs", vocab_size=600, output_dir=str(tmp_path / "b"))
    run_tokenizer_training(arguments)
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (trained[1] / "tokenizer.json").read_bytes()


def test_a_whole_file_is_learned_in_pieces(tmp_path, monkeypatch):
    """The trainer never has a long document as one string, which takes much memory, and learns the same from it."""
    text = "".join(f"Line {i} of the text, it's number {i * i}.\n" for i in range(500))
    whole = learned(tmp_path / "whole", text, document_unit="file").backend_tokenizer.to_str()
    sizes = []
    original = tokenizer_training._not_blank

    def watched(texts, origin):
        for batch in original(texts, origin):
            sizes.extend(map(len, batch))
            yield batch

    monkeypatch.setattr(tokenizer_training, "_not_blank", watched)
    monkeypatch.setattr(encoding, "_PIECE_CHARACTERS", 100)
    assert learned(tmp_path / "pieces", text, document_unit="file").backend_tokenizer.to_str() == whole
    assert sum(sizes) == len(text) and max(sizes) < 150


SCRIPTS = {
    "Latin": "All human beings are born free and equal in dignity and rights. Größe, ça va, naïve, Łódź, œuvre.",
    "Cyrillic": "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "Arabic": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق",
    "Devanagari": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।",
    "Chinese": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。😀",
}


def learned(tmp_path, text, **options):
    """A tokenizer learned from a text, as it is loaded for a training."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    folder = str(tmp_path / "own")
    arguments = TokenizerTrainingArguments(train_file=str(tmp_path / "text.txt"), output_dir=folder, **options)
    assert run_tokenizer_training(arguments) == 0
    return load_tokenizer(folder)


def decoded(tokenizer, text):
    return tokenizer.decode(tokenizer(text).input_ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "options",
    [{"vocab_size": 257}, {"vocab_size": 300}, {"model_type": "char"}, {"model_type": "char", "vocab_size": 280}],
)
def test_every_script_comes_back(tmp_path, script, options):
    """From bytes, parts of words and characters; text of the other scripts too, of which nothing was learned."""
    tokenizer = learned(tmp_path, SCRIPTS[script] + "\n", min_frequency=1, **options)
    assert len(tokenizer) <= options.get("vocab_size", 8192)
    for text in SCRIPTS.values():
        assert decoded(tokenizer, text) == text


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_token_for_each_character(tmp_path, script):
    """Of the text; of a character that it does not have, at most its bytes."""
    text = SCRIPTS[script]
    tokenizer = learned(tmp_path, text + "\n", model_type="char", min_frequency=1)
    assert len(tokenizer(text).input_ids) == len(text)
    assert [tokenizer.decode([i]) for i in tokenizer(text).input_ids] == list(text)
    assert 1 < len(tokenizer("ꙮ").input_ids) <= 3


def test_the_most_frequent_characters_come_first(tmp_path):
    """Where the vocabulary has no room for all, or a character is too rare."""
    tokenizer = learned(tmp_path, "жжжжшшшюю\n", model_type="char", vocab_size=259)
    assert [len(tokenizer(mark).input_ids) for mark in "жшю"] == [1, 1, 2]
    (tmp_path / "more").mkdir()
    tokenizer = learned(tmp_path / "more", "жжжжшшшюю\n", model_type="char", min_frequency=3)
    assert [len(tokenizer(mark).input_ids) for mark in "жшю"] == [1, 1, 2]


def test_bytes_alone(tmp_path):
    """A vocabulary of 257 is a token a byte."""
    tokenizer = learned(tmp_path, "\n".join(SCRIPTS.values()), vocab_size=257)
    for text in SCRIPTS.values():
        assert len(tokenizer(text).input_ids) == len(text.encode())


@pytest.mark.parametrize("options", [{"vocab_size": 257}, {"model_type": "char"}])
def test_figures_per_byte_are_exact(tmp_path, options):
    """What `evaluate` counts is the text, also with characters of several bytes."""
    text = "\n".join(SCRIPTS.values())
    tokenizer = learned(tmp_path, text, min_frequency=1, **options)
    ids = np.array([0, *tokenizer(text).input_ids])
    units = TextUnits.of(tokenizer)
    counts = units.count(ids[:-1], ids[1:])
    assert counts.bytes == len(text.encode()) and counts.words == len(text.split()) + text.count("\n")


def test_too_little_text(tmp_path, capsys):
    """Where the text has less to learn than asked for, a line says so."""
    (tmp_path / "a.txt").write_text("one two one two\n")
    run_tokenizer_training(
        TokenizerTrainingArguments(train_file=str(tmp_path / "a.txt"), output_dir=str(tmp_path / "own"))
    )
    assert "fewer than --vocab_size 8,192: nothing else that fits occurs --min_freq" in capsys.readouterr().out
    assert 257 <= len(load_tokenizer(str(tmp_path / "own"))) < 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 256, "train_file": "a.txt"}, "--vocab_size must be at least 257"),
        ({"min_frequency": 0, "train_file": "a.txt"}, "--min_frequency"),
        ({}, "--train_file or --dataset_name"),
        ({"train_file": "a.txt", "dataset_name": "python-docs"}, "--train_file or --dataset_name"),
        ({"train_file": "a.txt", "dataset_config_name": "x"}, "has no effect"),
    ],
)
def test_bad_options(options, message):
    """Options out of range or without effect are refused by name."""
    with pytest.raises(UserError, match=message):
        TokenizerTrainingArguments(**options)


def test_a_line_beyond_the_limit(tmp_path, monkeypatch):
    """It is refused with an option that the command has."""
    monkeypatch.setattr("gpt2_hf.data.readers.lines.MAX_ROW_CHARACTERS", 50)
    (tmp_path / "a.txt").write_text("word " * 20)
    options = {"train_file": str(tmp_path / "a.txt"), "output_dir": str(tmp_path / "own")}
    with pytest.raises(UserError, match="use --document_unit file"):
        run_tokenizer_training(TokenizerTrainingArguments(**options))
    assert run_tokenizer_training(TokenizerTrainingArguments(**options, document_unit="file")) == 0


def test_blank_text(tmp_path):
    """Text of white space is refused, and nothing is written."""
    (tmp_path / "a.txt").write_text("\n \n")
    arguments = TokenizerTrainingArguments(train_file=str(tmp_path / "a.txt"), output_dir=str(tmp_path / "own"))
    with pytest.raises(UserError, match="blank"):
        run_tokenizer_training(arguments)
    assert not (tmp_path / "own").exists()


def test_folder_that_cannot_be_made(tmp_path, monkeypatch):
    """A folder that cannot be written is refused before anything is learned, and nothing is left of the attempt."""
    monkeypatch.setattr(
        "gpt2_hf.data.tokenizer_training.train_tokenizer", lambda *args: pytest.fail("learned in vain")
    )

    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file" / "own", tmp_path / "new" / "own"):
        arguments = TokenizerTrainingArguments(dataset_name="python-docs", output_dir=str(folder))
        with pytest.raises(UserError, match=r"--output_dir: .* cannot be written"):
            run_tokenizer_training(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folder_that_is_there(tmp_path):
    """A folder with files is not overwritten."""
    (tmp_path / "keep.txt").write_text("keep")
    with pytest.raises(UserError, match=r"--output_dir: .* not empty"):
        run_tokenizer_training(TokenizerTrainingArguments(dataset_name="python-docs", output_dir=str(tmp_path)))


def test_a_user_that_there_is_not(tmp_path, monkeypatch):
    """`~nosuch` is a name like any other, as for a shell."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one two\n")
    options = {"train_file": "a.txt", "vocab_size": 257, "output_dir": "~nosuch/own"}
    assert run_tokenizer_training(TokenizerTrainingArguments(**options)) == 0
    assert len(load_tokenizer(tmp_path / "~nosuch" / "own")) == 257


def test_a_disk_that_is_full_in_the_end(tmp_path, monkeypatch):
    """What the tokenizers library raises is one line, and nothing is left in the way of the next try."""

    def refuse(tokenizer, folder):
        (folder / "tokenizer_config.json").write_text("{}")
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", refuse)
    arguments = TokenizerTrainingArguments(
        dataset_name="python-docs", vocab_size=300, output_dir=str(tmp_path / "own")
    )
    with pytest.raises(UserError, match=r"--output_dir: .*own cannot be written \(No space left on device"):
        run_tokenizer_training(arguments)
    assert list(tmp_path.iterdir()) == []
