"""gpt2_hf.data.tokenizer: GPT-2's ids without a network, other tokenizers by path, and checks before training."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding, GPT2Config, PreTrainedTokenizerFast

from gpt2_hf.data.tokenization import tokenizer_key
from gpt2_hf.data.tokenizer import (
    END_OF_TEXT,
    check_vocabulary,
    gpt2_tokenizer,
    load_tokenizer,
    num_ids,
    same_tokens,
    separator_id,
)
from gpt2_hf.errors import UserError

# Ids that OpenAI's own encoder gives.
KNOWN_IDS = {
    "Hello world": [15496, 995],
    "Hello, my dog is cute": [15496, 11, 616, 3290, 318, 13779],
    "The quick brown fox jumps over the lazy dog.": [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13],
    "a\n\nb": [64, 198, 198, 65],
    END_OF_TEXT: [50256],
}


@pytest.fixture
def wordlevel(tmp_path):
    """A saved tokenizer of four words, without any special token."""
    vocabulary = {"a": 0, "b": 1, "c": 2, "[UNK]": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "wordlevel"
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("text", KNOWN_IDS)
def test_known_ids(gpt2, text):
    """GPT-2's tokenizer gives the ids that OpenAI's encoder gives."""
    assert gpt2(text).input_ids == KNOWN_IDS[text]
    assert len(gpt2) == 50257


@given(text=st.text())
def test_round_trip(gpt2, text):
    """Any text comes back from its ids, byte for byte."""
    assert gpt2.decode(gpt2(text).input_ids, clean_up_tokenization_spaces=False) == text


def test_tokenizer_from_a_folder(gpt2, tmp_path):
    """A saved tokenizer loads from its folder and gives the same ids."""
    gpt2.save_pretrained(tmp_path / "saved")
    for path in (str(tmp_path / "saved"), tmp_path / "saved"):
        assert load_tokenizer(path)("Hello world").input_ids == gpt2("Hello world").input_ids


def test_the_collators_of_transformers_take_it():
    """Both pad with end of text; the one for language models does not score what it takes for padding."""
    tokenizer = load_tokenizer()
    rows = [tokenizer("Hello world"), tokenizer("Hello, my dog is cute")]
    for collator in (DataCollatorForLanguageModeling(tokenizer, mlm=False), DataCollatorWithPadding(tokenizer)):
        batch = collator(rows)
        assert batch["input_ids"][0].tolist() == [15496, 995, 50256, 50256, 50256, 50256]
        assert batch["attention_mask"].sum(dim=1).tolist() == [2, 6]
        assert "labels" not in batch or batch["labels"][0].tolist() == [15496, 995, -100, -100, -100, -100]


def test_padding_and_length_do_not_change_the_key_of_the_data(tmp_path, tokenizer_folder):
    """What is tokenised already, and the checkpoints of a stream, are found again."""
    plain = gpt2_tokenizer()
    assert plain.pad_token is None
    assert tokenizer_key(load_tokenizer()) == tokenizer_key(plain)
    saved = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    completed = load_tokenizer(str(tokenizer_folder))
    completed.model_max_length = 64
    completed.save_pretrained(tmp_path)
    assert completed.pad_token == saved.eos_token
    assert tokenizer_key(completed) == tokenizer_key(load_tokenizer(str(tmp_path))) == tokenizer_key(saved)


def test_tokenizers_that_give_the_same_ids(gpt2, tokenizer_folder, tmp_path):
    """Saved and loaded again, with padding or another length: the same tokens. Other merges or a token more: not."""
    load_tokenizer().save_pretrained(tmp_path / "again")
    again = load_tokenizer(str(tmp_path / "again"))
    again.pad_token, again.model_max_length = "!", 7
    again(["a", "a b"], padding=True)  # which the definition then says
    assert same_tokens(gpt2, again)
    tiny, changed = load_tokenizer(str(tokenizer_folder)), tmp_path / "changed"
    assert not same_tokens(gpt2, tiny)
    shutil.copytree(tokenizer_folder, changed)
    definition = json.loads((changed / "tokenizer.json").read_text())
    definition["model"]["merges"].pop()
    (changed / "tokenizer.json").write_text(json.dumps(definition))
    assert not same_tokens(tiny, load_tokenizer(str(changed)))
    more = load_tokenizer(str(tokenizer_folder))
    more.add_tokens(["<|user|>"])
    assert not same_tokens(tiny, more)


def test_it_knows_gpt2s_length_and_does_not_warn_of_it(caplog):
    """`truncation=True` cuts at 1,024 tokens; a longer text, which the data stage cuts, is no cause for a warning."""
    tokenizer = load_tokenizer()
    assert tokenizer.model_max_length == 1024
    text = "a b" * 2000
    with caplog.at_level("WARNING"):
        assert len(tokenizer(text).input_ids) > 1024 == len(tokenizer(text, truncation=True).input_ids)
    assert not caplog.records


@pytest.mark.parametrize("name", ["./missing", "~/missing-folder", "~nosuch/tok", "/missing/folder"])
def test_missing_folder(name):
    """A path that is not there is one line that names the option."""
    with pytest.raises(UserError, match=r"--tokenizer_name: there is no folder .*; give") as error:
        load_tokenizer(name)
    assert "\n" not in str(error.value)


def test_folder_without_tokenizer(tmp_path):
    """A folder without a tokenizer is one line that names the option and the remedy."""
    with pytest.raises(UserError, match=r"--tokenizer_name: no tokenizer .*leave it out") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_folder_with_the_config_of_a_tokenizer_alone(tmp_path, name):
    """Of a model, or of a tokenizer whose tokens were not copied: transformers makes an empty one of either."""
    GPT2Config().save_pretrained(tmp_path)
    if name == "tokenizer_config.json":
        (tmp_path / "config.json").rename(tmp_path / "other.json")
        (tmp_path / name).write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(UserError, match=r"--tokenizer_name: .* holds no tokenizer, .*tokenizer.json, or leave it out"):
        load_tokenizer(tmp_path)


def test_too_large_a_vocabulary_is_refused(gpt2):
    """Ids that the embedding lacks are refused, exactly fitting ones are not."""
    check_vocabulary(gpt2, 50257)
    with pytest.raises(UserError, match=r"50,257 ids .* 50,256"):
        check_vocabulary(gpt2, 50256)


def test_ids_with_holes():
    """What counts is the largest id, not the number of tokens."""
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 99, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert num_ids(tokenizer) == 100
    with pytest.raises(UserError, match="100 ids"):
        check_vocabulary(tokenizer, 99)


def test_separator(gpt2, wordlevel):
    """Documents are separated by end of text; a tokenizer without such a token is refused with the remedy."""
    assert separator_id(gpt2) == 50256
    with pytest.raises(UserError, match="--sequence_mode padding_free"):
        separator_id(load_tokenizer(str(wordlevel)))


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def sentencepiece_model(request, tmp_path_factory, documents):
    """A sentencepiece model with bytes for what it does not know."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path_factory.mktemp("sentencepiece") / "some.model"
    with open(path, "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(documents),
            model_writer=stream,
            model_type=request.param,
            vocab_size=500,
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return path


def test_sentencepiece_model(sentencepiece_model, documents, tmp_path):
    """By file or folder: sentencepiece's own ids, any text comes back, and what is saved needs no model."""
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    texts = [text for text in documents[:100] if text] + ["  two  spaces", "中文 ñ 😀"]
    for place in (sentencepiece_model, sentencepiece_model.parent):
        tokenizer = load_tokenizer(str(place))
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert ids == reference.encode(text)
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer.eos_token == "</s>" and tokenizer.pad_token == "</s>"
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert all(again(text).input_ids == tokenizer(text).input_ids for text in texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.model", None, "there is no file"),
        ("a.model", b"not a model", "is no sentencepiece model"),
    ],
)
def test_no_sentencepiece_model(tmp_path, name, content, message):
    """One line that names the option and the file."""
    pytest.importorskip("sentencepiece")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for option in ("--tokenizer_name", "--model_path"):
        with pytest.raises(UserError, match=f"{option}: .*{message}"):
            load_tokenizer(str(tmp_path / name), option)


def test_sentencepiece_is_not_installed(tmp_path, monkeypatch):
    """The line says what to install; of two models in a folder it asks for one."""
    (tmp_path / "a.model").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "b.model").write_bytes(b"")
    with pytest.raises(UserError, match="holds 2 sentencepiece models"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_of_another_version(tmp_path):
    """A file that the tokenizers library cannot read is one line, which names the option that led to it."""
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "tokenizer.json").write_text('{"version": "9.0", "added_tokens": [], "model": {"type": "unheard of"}}')
    with pytest.raises(UserError, match=r"--model_path: no tokenizer could be loaded from .*tokenizer.json$") as error:
        load_tokenizer(str(tmp_path), "--model_path")
    assert "\n" not in str(error.value)
