"""The files that a run has written in its folder, so that it never touches one that somebody else has put there.

`written_files.json` keeps the SHA-256 of each content that was written under a name. It is noted before the file gets
its name, so that a process can be killed in between. A file with another content is somebody else's, or was edited by
hand: it stays as it is, and a run that would have to replace it is refused.

In: names and contents. Out: a file in one step, or an error. `ownership` looks over the folder before a run starts.
"""

import contextlib
import hashlib
import json
import os
import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..options.parsing import PROVENANCE_KEY
from ..runtime.files import TEMPORARY_PREFIX, read_object, sha256, sync

if sys.platform != "win32":
    import fcntl

RECORD_NAME = "written_files.json"
NAMES_FILE = "checkpoint_names.json"
RESOLVED_CONFIG_NAME = "resolved_config.json"
TRAINER_STATE_NAME = "trainer_state.json"
CARD_NAME = "README.md"
CURVES_NAME = "curves.png"
BEST_MODEL = "best_model"
TRAIN_RESULTS_NAME = "train_results.json"
RESULT_NAMES = tuple(f"{split}_results.json" for split in ("train", "eval", "test", "all"))
FILE_NAMES = (NAMES_FILE, RESOLVED_CONFIG_NAME, TRAINER_STATE_NAME, *RESULT_NAMES, CARD_NAME, CURVES_NAME)
# What a report adds to the best model.
BEST_MODEL_FILES = (f"{BEST_MODEL}/{CARD_NAME}", f"{BEST_MODEL}/{CURVES_NAME}")

# Of the picture that versions without a record drew, in pixels.
_CURVES_SIZE = (1320, 770)
_CHECKPOINT = re.compile(r"checkpoint-\d+")


@contextlib.contextmanager
def replacing(run_dir: Path, name: str) -> Iterator[Path]:
    """Replace a file of a run in one step by what is written to the path that this gives.

    Only one process does so at a time: `gpt2-hf report` may be asked for a run that goes on.

    Args:
        run_dir: the run's folder, in which the record is kept.
        name: of the file, relative to the folder.

    Raises:
        FileExistsError: if there is a file of that name which no run wrote; it is left as it is.
    """
    path = run_dir / name
    with _alone_in(run_dir):
        refuse_foreign_file(run_dir, name)
        if not is_record(run_dir / RECORD_NAME):
            _save(run_dir, _read(run_dir))  # first, so that a file that was torn off is known for a run's
        temporary = path.with_name(TEMPORARY_PREFIX + path.name)
        try:
            yield temporary
            sync(temporary)
            _note(run_dir, name, sha256(temporary))
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(run_dir: Path, name: str, text: str) -> None:
    """Replace a text of a run in one step; see `replacing`."""
    with replacing(run_dir, name) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(run_dir: Path, name: str, content: Any) -> None:
    """Replace a JSON file of a run in one step; see `replacing`."""
    write_text(run_dir, name, json.dumps(content, indent=2) + "\n")


def delete(run_dir: Path, name: str) -> None:
    """Delete a file of a run, if it is there and still as a run wrote it."""
    if is_own(run_dir, name):
        (run_dir / name).unlink(missing_ok=True)


def is_own(run_dir: Path, name: str, path: Path | None = None) -> bool:
    """Whether a run wrote the file, which may be elsewhere now, and nobody has changed it since."""
    path = path if path is not None else run_dir / name
    return path.is_file() and not path.is_symlink() and sha256(path) in _read(run_dir).get(name, [])


def refuse_foreign_file(run_dir: Path, name: str) -> None:
    """Raise a `FileExistsError` if there is something of that name which no run wrote."""
    path = run_dir / name
    if os.path.lexists(path) and not is_own(run_dir, name):
        raise FileExistsError(f"{path} was not written by a run of gpt2_hf, or was changed since; it is left as it is")


def holds_record(run_dir: Path) -> bool:
    """Whether a run has written in the folder."""
    return is_record(run_dir / RECORD_NAME) or bool(_record_of_earlier_version(run_dir))


def is_record(path: Path) -> bool:
    """Whether the file is a record, and not somebody else's of the same name."""
    return _parsed_record(path) is not None


# ---- the record ----


@contextlib.contextmanager
def _alone_in(run_dir: Path) -> Iterator[None]:
    """Wait for another process that writes in the folder, where the system can; leaves no file there."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            if sys.platform == "win32":  # which cannot lock a folder
                place = os.path.normcase(run_dir.resolve())
                name = f"gpt2_hf-{hashlib.sha256(os.fsencode(place)).hexdigest()[:32]}.lock"
                held.enter_context(FileLock(os.path.join(tempfile.gettempdir(), name)))
            else:
                descriptor = os.open(run_dir, os.O_RDONLY)
                held.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _note(run_dir: Path, name: str, digest: str) -> None:
    record = _read(run_dir)
    digests = record.setdefault(name, [])
    if digest in digests:
        return
    digests.append(digest)
    _save(run_dir, record)


def _save(run_dir: Path, record: dict[str, list[str]]) -> None:
    temporary = run_dir / (TEMPORARY_PREFIX + RECORD_NAME)
    # with the same line ends everywhere: `ownership` knows by its first bytes what a killed process left of it
    temporary.write_text(json.dumps({"sha256": record}, indent=2) + "\n", encoding="utf-8", newline="\n")
    sync(temporary)
    os.replace(temporary, run_dir / RECORD_NAME)


def _read(run_dir: Path) -> dict[str, list[str]]:
    record = _parsed_record(run_dir / RECORD_NAME)
    return record if record is not None else _record_of_earlier_version(run_dir)


def _parsed_record(path: Path) -> dict[str, list[str]] | None:
    content = read_object(path).get("sha256")
    if not isinstance(content, dict) or not all(isinstance(digests, list) for digests in content.values()):
        return None
    return content


# ---- runs of versions that kept no record: their files are known by their content ----


def _record_of_earlier_version(run_dir: Path) -> dict[str, list[str]]:
    if not is_config_of_run(run_dir / RESOLVED_CONFIG_NAME):
        return {}
    names = [name for name in (*FILE_NAMES, *BEST_MODEL_FILES) if _was_written_earlier(run_dir / name)]
    return {name: [sha256(run_dir / name)] for name in names}


def _was_written_earlier(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.name == CARD_NAME:
        return b"Trained with gpt2_hf on `" in path.read_bytes()
    if path.name == CURVES_NAME:
        head = path.read_bytes()[:24]
        return head.startswith(b"\x89PNG") and head[16:] == struct.pack(">II", *_CURVES_SIZE)
    if path.name == RESOLVED_CONFIG_NAME:
        return is_config_of_run(path)
    content = read_object(path)
    if path.name == NAMES_FILE:
        return all(isinstance(folder, str) and _CHECKPOINT.fullmatch(folder) for folder in content.values())
    if path.name == TRAINER_STATE_NAME:
        return "TimeBudgetCallback" in (content.get("stateful_callbacks") or {})
    return bool({"eval_tokens", "test_tokens", "train_hours"} & content.keys())


def is_config_of_run(path: Path) -> bool:
    """Whether the file is the resolved config of a run of this package."""
    provenance = read_object(path).get(PROVENANCE_KEY)
    return isinstance(provenance, dict) and "gpt2_hf" in provenance
