"""What the tests of the data stage share: caches of their own, and GPT-2's tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from gpt2_hf.data.tokenizer import gpt2_tokenizer


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
