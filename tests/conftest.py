"""What the tests share: a tiny tokenizer, a tiny corpus, and runs that take a second or two.

Nothing here needs a network. The datasets cache is a folder of the test session, so that tests neither see nor
leave anything on the machine.
"""

import atexit
import contextlib
import gc
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
if multiprocessing.parent_process() is None:  # a forked test has that of its parent
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="gpt2_hf-tests-datasets-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices are slower on several threads; processes inherit it

import psutil
import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import PreTrainedTokenizerFast

from gpt2_hf.__main__ import main
from gpt2_hf.commands import report
from gpt2_hf.model import chunked_loss
from gpt2_hf.planning import probe
from gpt2_hf.runtime.precision import resolve_precision

from .faults import harness

# A busy machine must not fail a property for time. Fixtures are made once for all examples, which leave them alone.
settings.register_profile(
    "tests", max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")

REPOSITORY = Path(__file__).resolve().parent.parent

# Where the package refuses or avoids bf16, there is nothing of it to test.
needs_bf16 = pytest.mark.skipif(resolve_precision("auto", "cpu").name != "bf16", reason="this CPU has no bf16")
# There a process that is sent a signal is ended, without a chance to save.
needs_posix_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no POSIX signals")
# Processes are forked from one that has imported everything.
needs_fork_server = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server")

TINY_MODEL = ["--d_model", "32", "--num_layers", "2", "--num_heads", "2", "--max_length", "32"]


def wikitext_folder() -> Path:
    """The local copy of WikiText-2 in the hub's layout, whether or not it is there."""
    return Path(os.environ.get("GPT2_HF_WIKITEXT", REPOSITORY.parent / "shared" / "data" / "wikitext"))


def _memory_disk() -> str | None:
    """A roomy folder in memory, if there is one."""
    if not os.access("/dev/shm", os.W_OK):
        return None
    disk = os.statvfs("/dev/shm")
    is_roomy = disk.f_bavail * disk.f_frsize > 4 << 30
    return "/dev/shm" if is_roomy and not disk.f_flag & os.ST_NOEXEC else None


def pytest_configure(config: pytest.Config) -> None:
    """Put `tmp_path` into memory: each checkpoint syncs its files, and tests would wait for the disk."""
    if (folder := _memory_disk()) is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", folder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow unless asked for, and what needs WikiText-2 where there is none."""
    # whole runs first: at the end one of them would leave a processor idle
    items.sort(key=lambda item: not {"docs", "end_to_end", "faults"} & set(item.path.parts))
    asked_for_slow = "slow" in (config.getoption("-m") or "")
    for item in items:
        if item.get_closest_marker("slow") and not asked_for_slow:
            item.add_marker(pytest.mark.skip(reason="takes minutes; .ci/slow runs it"))
        if item.get_closest_marker("wikitext") and not wikitext_folder().is_dir():
            reason = f"no WikiText-2 in {wikitext_folder()} (GPT2_HF_WIKITEXT names another place)"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish(session: pytest.Session) -> None:
    """transformers collects garbage at each training: it need not look through what was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def several_softmax_blocks(monkeypatch):
    """A softmax of few logits at a time: all rows of a small vocabulary would be in one block."""
    monkeypatch.setattr(chunked_loss, "_CPU_LOGITS_PER_SOFTMAX", 16 * 50)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Also where something has imported torch before this file."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _restore_verbosity() -> Iterator[None]:
    """The main job quietens transformers; a test must not do so for the next one."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)


@pytest.fixture(autouse=True)
def _curves_are_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a tiny run would be drawing; `finished_run` and the tests of reports do draw."""
    monkeypatch.setattr(report, "draw_curves", lambda history: harness.blank_curves())


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """Of those that a test has started with the harness, also when it fails."""
    yield
    harness.kill_started()


@pytest.fixture
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan measures few steps: for tests that do not ask how long anything takes."""
    monkeypatch.setattr(probe, "_MAX_STEPS", probe._MIN_STEPS)
    monkeypatch.setattr(probe, "_EVALUATION_SECONDS", 0.1)


@pytest.fixture
def popen() -> Iterator[Callable[..., subprocess.Popen]]:
    """`subprocess.Popen` of programs that end with the test, their children too."""
    started = []

    def start(command: list[str], **options: Any) -> subprocess.Popen:
        started.append(subprocess.Popen(command, **options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            parent = psutil.Process(process.pid)
            for one in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()


def python(code: str, *words: str, timeout: float = 90, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program of its own that has ended, with what it printed."""
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """The local copy of WikiText-2."""
    return wikitext_folder()


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """A few hundred short documents of English prose, blank ones among them."""
    from gpt2_hf.data.python_docs import load_python_docs

    paragraphs = [part for text in load_python_docs()["text"][:40] for part in text.split("\n\n")]
    return [" ".join(part.split())[:200] for part in paragraphs[:300]] + [""] * 5


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """A byte-level BPE of 384 ids, trained on the tiny corpus and saved."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(documents, vocab_size=384, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """train.txt, validation.txt and test.txt of the tiny corpus, a document a line."""
    folder = tmp_path_factory.mktemp("corpus")
    parts = {"train": documents[:200], "validation": documents[200:230], "test": documents[230:260]}
    for split, lines in parts.items():
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_options(corpus_folder: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a run that takes a second: 25 steps an epoch on a model of 35,000 parameters.

    What may become pointless beside a test's own options stands in a config file, where that is no error.
    """
    config = tmp_path_factory.mktemp("config") / "tiny.json"
    cadence = {"warmup_steps": 5, "logging_steps": 5, "eval_every": 10, "save_every": 10}
    config.write_text(json.dumps(cadence), encoding="utf-8")
    return [
        *TINY_MODEL,
        *("--train_file", str(corpus_folder / "train.txt")),
        *("--validation_file", str(corpus_folder / "validation.txt")),
        *("--test_file", str(corpus_folder / "test.txt")),
        *("--tokenizer_name", str(tokenizer_folder)),
        *("--precision", "fp32", "--use_cpu", "--learning_rate", "3e-3", "--max_epochs", "1"),
        *("--max_train_samples", "200", "--config", str(config)),
    ]


TrainTiny = Callable[..., int]


@pytest.fixture
def train_tiny(tiny_options: list[str]) -> TrainTiny:
    """Run the main job in this process: `train_tiny(output_dir, *options)` returns its exit code."""

    def run(output_dir: Path, *options: str) -> int:
        return main(["train", *tiny_options, "--checkpoint_dir", str(output_dir), *options])

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_options: list[str]) -> Path:
    """The folder of a finished tiny run; tests only read it."""
    output_dir = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", *tiny_options, "--checkpoint_dir", str(output_dir)]) == 0
    return output_dir


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder that everybody may use, and a user who is not root: root may read and write everything."""
    if sys.platform == "win32":
        pytest.skip("Windows has no such permissions")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
        if not os.access(folder, os.W_OK, effective_ids=True):
            os.seteuid(0)
            folder.rmdir()
            pytest.skip("TMPDIR is closed to other users (chmod a+x opens it)")
    yield folder
    if is_root:
        os.seteuid(0)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.fixture
def locked_options(finished_run: Path, unprivileged: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a tiny run of that user, whose output folder would be in one that cannot be written to.

    After another run, which has imported everything: Python's own folder may be closed to that user, and that of
    temporary files as well.
    """
    import datasets

    monkeypatch.setattr(tempfile, "tempdir", str(unprivileged))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", unprivileged / "cache")
    text, locked = unprivileged / "text.txt", unprivileged / "locked"
    text.write_text("".join(f"Number {i} of the lines.\n" for i in range(60)))
    locked.mkdir(mode=0o500)
    options = ["--train_file", str(text), "--checkpoint_dir", str(locked / "run"), "--use_cpu", "--precision", "fp32"]
    return [*TINY_MODEL, *options]


def read_json(path: Path) -> dict:
    """The content of a JSON file."""
    content: dict = json.loads(path.read_text(encoding="utf-8"))
    return content
