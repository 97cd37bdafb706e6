"""How much text a token is: its bytes, and the words and line ends in it.

In: a byte-level BPE tokenizer, and pairs of consecutive tokens. Out: counts that do not depend on how the text was
cut into tokens, so that models with different vocabularies can be compared.

The tokens of a byte-level BPE are the bytes of the text, each written as one character, and so the counts are those
of the original text. Other tokenizers change the text (case, white space, unknown characters): for them there is no
`TextUnits`.
"""

import re
from dataclasses import dataclass

import numpy as np
from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from ..data.tokenizer import num_ids

# A byte below 33, among them the white space of ASCII, is written as the character 256 places further on.
_WHITE_SPACE = "".join(chr(256 + byte) for byte in b" \t\n\r\v\f")
_LINE_END = chr(256 + ord("\n"))
_WORD = re.compile(f"[^{_WHITE_SPACE}]+")


@dataclass(frozen=True)
class TextCounts:
    """An amount of text.

    Attributes:
        words: as `wc -w` counts them (separated by white space of ASCII), and one more for each line end, which a
            model predicts like a word. WikiText's own counts have the ends of blank lines too, which the rows of the
            hub's copy lack: of the validation split of WikiText-2 217,646 words, not the 216,347 of the rows.
        line_ends: those among the words.
        bytes: of the text in UTF-8.
    """

    words: int = 0
    line_ends: int = 0
    bytes: int = 0

    def __add__(self, other: "TextCounts") -> "TextCounts":
        return TextCounts(self.words + other.words, self.line_ends + other.line_ends, self.bytes + other.bytes)


class TextUnits:
    """Tables over the vocabulary, with which text is counted without decoding it.

    Special tokens are no text: they have no bytes, and a word may begin after them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        size = num_ids(tokenizer)
        self._bytes = np.zeros(size, dtype=np.int64)
        self._line_ends = np.zeros(size, dtype=np.int64)
        self._words_inside = np.zeros(size, dtype=np.int64)  # that begin after the token's first byte
        self._begins_in_word = np.zeros(size, dtype=bool)
        self._ends_in_word = np.zeros(size, dtype=bool)
        special = set(tokenizer.all_special_ids)
        added = tokenizer.added_tokens_decoder
        for token, i in tokenizer.get_vocab().items():
            if i in special:
                continue
            if i in added:  # stands in the vocabulary as it stands in the text
                token = "".join(chr(256 + byte) if byte < 33 else "x" for byte in added[i].content.encode())
            words = [match.start() for match in _WORD.finditer(token)]
            self._bytes[i] = len(token)
            self._line_ends[i] = token.count(_LINE_END)
            self._words_inside[i] = sum(start > 0 for start in words)
            self._begins_in_word[i] = words[:1] == [0]
            self._ends_in_word[i] = token[-1:] not in _WHITE_SPACE

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "TextUnits | None":
        """The tables of a tokenizer whose tokens are the bytes of the text; `None` for any other."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if (
            backend is None
            or backend.normalizer is not None
            or not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
            or backend.pre_tokenizer.add_prefix_space
            or not isinstance(backend.decoder, decoders.ByteLevel)
        ):
            return None
        return cls(tokenizer)

    def count(self, previous: np.ndarray, tokens: np.ndarray) -> TextCounts:
        """Count the text in `tokens`, int64 `[N]`, each of which comes after the one in `previous`, int64 `[N]`.

        A word counts with the token in which it begins: one that began before the first token does not count.
        """
        begins = self._begins_in_word[tokens] & ~self._ends_in_word[previous]
        line_ends = int(self._line_ends[tokens].sum())
        words = int(self._words_inside[tokens].sum()) + int(begins.sum()) + line_ends
        return TextCounts(words, line_ends, int(self._bytes[tokens].sum()))
