"""What stands in an output folder under a name that a run uses, though no run wrote it.

In: a folder, before anything in it is changed. Out: the paths that must stay as they are, so that a run is refused.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from . import folders, written
from .run_lock import LOCK_NAME

RUNS_FOLDER = "runs"
# TensorBoard reads every file with "tfevents" in its name; this ending says whose it is.
EVENT_FILE_SUFFIX = ".gpt2_hf"

_EVENT_HEADER = b"brain.Event:"
# In event files of versions without the ending.
_EARLIER_EVENTS = (b"resolved_config/text_summary", b"Nats per token")
_LONGEST_HEADER = 100
_LARGEST_SEARCHED = 1 << 20

_STAGED = re.compile(rf"^{folders.STAGING_PREFIX}(checkpoint-\d+|{folders.BEST_MODEL})$")
_TEMPORARY = re.compile(
    rf"^{written.TEMPORARY_PREFIX}({'|'.join(map(re.escape, (*written.FILE_NAMES, written.RECORD_NAME)))}"
    rf"|{re.escape(LOCK_NAME)}-.+)$"
)
_FOLDER = re.compile(rf"^(({folders.ABANDONED_PREFIX})?checkpoint-\d+|{folders.BEST_MODEL})({folders.OLD_SUFFIX})?$")
# How a file begins, also one that was torn off while it was written.
_BEGINNINGS = {".json": b"{", ".md": b"---", ".png": b"\x89PNG"}
_LOCK_BEGINNING = b'{"pid": '
_RECORD_BEGINNING = b'{\n  "sha256": {'


def refuse_foreign(run_dir: Path, deleting: bool = False) -> None:
    """Refuse a folder in which a run would have to change something that no run wrote.

    Args:
        run_dir: the output folder; it need not be there.
        deleting: the run in it is to be deleted.

    Raises:
        UserError: one line that names the first such thing.
    """
    found = list(foreign(run_dir, deleting))
    if found:
        others = f" (nor were {len(found) - 1} others there)" if len(found) > 1 else ""
        raise UserError(
            f"--checkpoint_dir: {found[0]} was not written by a run of gpt2_hf, or was changed since{others}; move it "
            "away, or choose another --checkpoint_dir"
        )


def foreign(run_dir: Path, deleting: bool = False) -> Iterator[Path]:
    """Each path under a name that runs use, which no run wrote; see `refuse_foreign`."""
    if not run_dir.is_dir():
        return
    for name in written.FILE_NAMES:  # asked for one by one: readme.md may be the same name here
        if (run_dir / name).exists() and not written.is_own(run_dir, name):
            yield run_dir / name
    record = run_dir / written.RECORD_NAME
    if record.exists() and not written.is_record(record):
        yield record
    lock = run_dir / LOCK_NAME
    if lock.exists() and not _begins(lock, _LOCK_BEGINNING):
        yield lock
    yield from _foreign_events(run_dir / RUNS_FOLDER)
    for path in sorted(run_dir.iterdir()):
        if _FOLDER.match(path.name):
            yield from _foreign_in_folder(run_dir, path, deleting)
        staged, temporary = _STAGED.match(path.name), _TEMPORARY.match(path.name)
        if (staged and not folders.is_own_staging(path)) or (temporary and not _is_own_temporary(run_dir, path)):
            yield path


def _foreign_in_folder(run_dir: Path, path: Path, deleting: bool) -> Iterator[Path]:
    if path.is_symlink() and path.name != folders.BEST_MODEL and not deleting:
        return  # a checkpoint that was moved to another disk; it is read, and never deleted
    if path.is_symlink() or not folders.is_own(path):
        yield path
        return
    if path.name == folders.BEST_MODEL:
        for name in written.BEST_MODEL_FILES:
            if (run_dir / name).exists() and not written.is_own(run_dir, name):
                yield run_dir / name
    if deleting:
        yield from folders.extras(path)


def own_events(run_dir: Path) -> list[Path]:
    """The event files that runs wrote."""
    return [path for path in _event_files(run_dir / RUNS_FOLDER) if _is_own_event_file(path)]


def _event_files(runs: Path) -> list[Path]:
    """Directly in the folder; those of other programs lie in folders of their own, and stay there."""
    return sorted(path for path in runs.glob("*tfevents*") if not path.is_dir())


def _foreign_events(runs: Path) -> Iterator[Path]:
    if runs.exists() and not runs.is_dir():
        yield runs
    yield from (path for path in _event_files(runs) if not _is_own_event_file(path))


def _is_own_event_file(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        content = file.read(_LARGEST_SEARCHED)
    if content and _EVENT_HEADER not in content[:_LONGEST_HEADER]:
        return False
    if path.name.endswith(EVENT_FILE_SUFFIX) or len(content) <= _LONGEST_HEADER:
        return True  # or it has no events
    return any(text in content for text in _EARLIER_EVENTS)


def _is_own_temporary(run_dir: Path, path: Path) -> bool:
    """Whether it may be a file that a killed process had begun."""
    name = path.name.removeprefix(written.TEMPORARY_PREFIX)
    if name.startswith(LOCK_NAME):
        return _begins(path, _LOCK_BEGINNING)
    if name == written.RECORD_NAME:
        return _begins(path, _RECORD_BEGINNING)
    return written.holds_record(run_dir) and _begins(path, _BEGINNINGS[path.suffix])


def _begins(path: Path, beginning: bytes) -> bool:
    """Whether a file begins like this, or was torn off within it."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(len(beginning))
    return beginning.startswith(head)
