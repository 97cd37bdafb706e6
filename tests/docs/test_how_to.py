"""What the how-to pages say of contexts and of the tokenizer for characters is true."""

import re

from transformers import AutoTokenizer

from ..conftest import REPOSITORY, read_json
from .documents import code_blocks


def test_the_context_for_llama_cpp_is_the_quickstarts():
    """Beyond a GPT-2's positions it has no embeddings."""
    page = (REPOSITORY / "docs" / "how-to" / "gguf.md").read_text(encoding="utf-8")
    contexts = {int(size) for size in re.findall(r"n(?:um)?_ctx[= ](\d+)", page)}
    assert contexts == {read_json(REPOSITORY / "training_args" / "quickstart.json")["max_length"]}


def test_the_tokenizer_for_characters_is_nanogpts(tmp_path, monkeypatch):
    """Each character has the id that nanoGPT's prepare.py gives it, and comes back."""
    monkeypatch.chdir(tmp_path)
    text = "First Citizen:\nBefore we proceed, hear me speak.\n\nAll:\n  Speak!"
    folder = tmp_path / "data" / "shakespeare_char"
    folder.mkdir(parents=True)
    (folder / "input.txt").write_text(text)
    page = REPOSITORY / "docs" / "how-to" / "nanogpt.md"
    (snippet,) = code_blocks(page.read_text(encoding="utf-8"), "python")
    exec(snippet, {})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "characters")
    ids = tokenizer(text).input_ids
    assert ids == [sorted(set(text)).index(character) for character in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer("F\u00e9i").input_ids == tokenizer("Fi").input_ids  # "it is left out of every text"
    assert tokenizer.eos_token_id is None  # "no end-of-text token"
