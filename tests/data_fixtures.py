"""What the tests of the data stage share: where WikiText-2 is, caches of their own, documents without a tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset
from datasets.table import InMemoryTable
from hypothesis import HealthCheck, settings

from gpt2_hf.data.tokenization import TokenizedDocuments
from gpt2_hf.data.tokenizer import gpt2_tokenizer
from gpt2_hf.options.arguments import DataArguments

from .conftest import wikitext_folder

WIKITEXT = wikitext_folder()

# For properties whose examples cost milliseconds; a busy machine must not fail them for time.
modest = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own for every test."""
    folder = tmp_path / "datasets-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


@pytest.fixture(scope="session")
def wikitext_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests that read WikiText-2, so that it is tokenised once."""
    return tmp_path_factory.mktemp("wikitext-cache")


@pytest.fixture
def shared_wikitext_cache(cache_folder: Path, wikitext_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use the cache of `wikitext_cache` in this test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", wikitext_cache)
    yield


@pytest.fixture(scope="session")
def gpt2():
    """GPT-2's tokenizer."""
    return gpt2_tokenizer()


def documents_of(ids: list[list[int]], rows_per_chunk: int = 3) -> TokenizedDocuments:
    """Tokenized documents with these ids; an empty list is a blank row."""
    chunks = [ids[i : i + rows_per_chunk] for i in range(0, len(ids), rows_per_chunk)]
    column = pa.chunked_array(chunks, type=pa.list_(pa.uint16()))
    return TokenizedDocuments(Dataset(InMemoryTable(pa.table({"input_ids": column}))))


def file_arguments(train_file: Path | str, **options) -> DataArguments:
    """Arguments for files, as the command line leaves them."""
    return DataArguments(dataset_name=None, dataset_config_name=None, train_file=str(train_file), **options)
