"""What the tests of the data stage share: where WikiText-2 is, its options, documents without a tokenizer."""

from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from gpt2_hf.data.tokenization import TokenizedDocuments
from gpt2_hf.options.arguments import DataArguments

from .conftest import wikitext_folder

WIKITEXT = wikitext_folder()


def documents_of(ids: list[list[int]], rows_per_chunk: int = 3) -> TokenizedDocuments:
    """Tokenized documents with these ids; an empty list is a blank row."""
    chunks = [ids[i : i + rows_per_chunk] for i in range(0, len(ids), rows_per_chunk)]
    column = pa.chunked_array(chunks, type=pa.list_(pa.uint16()))
    return TokenizedDocuments(Dataset(InMemoryTable(pa.table({"input_ids": column}))))


def file_arguments(train_file: Path | str, **options) -> DataArguments:
    """Arguments for files, as the command line leaves them."""
    return DataArguments(dataset_name=None, dataset_config_name=None, train_file=str(train_file), **options)
