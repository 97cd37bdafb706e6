"""What tests with data share: where WikiText-2 is, options, documents without a tokenizer, a stream."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from gpt2_hf.data import StreamingSamples
from gpt2_hf.data.sources import load_sources
from gpt2_hf.data.tokenization import TokenizedDocuments
from gpt2_hf.options.arguments import DataArguments

from .conftest import wikitext_folder
from .tiny_models import word_tokenizer

WIKITEXT = wikitext_folder()


def documents_of(ids: list[list[int]], rows_per_chunk: int = 3) -> TokenizedDocuments:
    """Tokenized documents with these ids; an empty list is a blank row."""
    chunks = [ids[i : i + rows_per_chunk] for i in range(0, len(ids), rows_per_chunk)]
    column = pa.chunked_array(chunks, type=pa.list_(pa.uint16()))
    return TokenizedDocuments(Dataset(InMemoryTable(pa.table({"input_ids": column}))))


def file_arguments(train_file: Path | str, **options) -> DataArguments:
    """Arguments for files, as the command line leaves them."""
    return DataArguments(dataset_name=None, dataset_config_name=None, train_file=str(train_file), **options)


def streamed_lines(folder: Path, lengths: Iterable[int]) -> StreamingSamples:
    """A stream of lines with so many words, each of which is a token, from a file in the folder."""
    path = folder / "text.txt"
    path.write_text("".join(" ".join(f"w{i}" for i in range(n)) + "\n" for n in lengths))
    source = load_sources(file_arguments(path))["train"]
    return StreamingSamples(source, word_tokenizer(96), max_length=32, buffer_size=50)
