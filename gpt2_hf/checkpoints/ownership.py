"""What stands in an output folder under a name that a run uses, though no run wrote it.

In: a folder, before anything in it is changed. Out: the paths that must stay as they are, so that a run is refused.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from ..runtime.files import TEMPORARY_PREFIX
from . import folders, manifest, written
from .event_files import event_files, event_folders, is_own_event_file
from .run_lock import LOCK_NAME

_FOLDER = re.compile(rf"^((_?{folders.ABANDONED_PREFIX})?checkpoint-\d+|{folders.BEST_MODEL})({folders.OLD_SUFFIX})?$")
# How a file begins, also one that was torn off while it was written.
_BEGINNINGS = {".json": b"{", ".md": b"---", ".png": b"\x89PNG"}
_LOCK_BEGINNING = b'{"pid": '
_RECORD_BEGINNING = b'{\n  "sha256": {'


def refuse_foreign(run_dir: Path, deleting: bool, run_name: str) -> None:
    """Refuse a folder in which a run would have to change something that no run wrote.

    Args:
        run_dir: the output folder; it need not be there.
        deleting: the run in it is to be deleted.
        run_name: name of the folder in `runs` that the run will write to.

    Raises:
        UserError: one line that names the first such thing.
    """
    _refuse(list(foreign(run_dir, deleting, run_name)))


def refuse_foreign_checkpoints(run_dir: Path, publishes_best: bool) -> None:
    """Like `refuse_foreign`, of what a Trainer without a job writes: checkpoints, their names, and the best model.

    Files of the other names may be those of transformers' `save_state` and `save_metrics`.

    Args:
        run_dir: the output folder; it need not be there.
        publishes_best: whether there can be a best model.
    """
    if not run_dir.is_dir():
        return
    found = list(_foreign_folders(run_dir))
    # a card in the best model may be transformers', and is not written over
    found = [path for path in found if path.relative_to(run_dir).as_posix() not in written.BEST_MODEL_FILES]
    if not publishes_best:
        best = (folders.BEST_MODEL, folders.BEST_MODEL + folders.OLD_SUFFIX)
        found = [path for path in found if path.relative_to(run_dir).parts[0] not in best]
    if (run_dir / written.NAMES_FILE).exists() and not written.is_own(run_dir, written.NAMES_FILE):
        found.append(run_dir / written.NAMES_FILE)
    _refuse(found, "output_dir")


def _refuse(found: list[Path], option: str = "--checkpoint_dir") -> None:
    if found:
        others = f" (nor were {len(found) - 1} others there)" if len(found) > 1 else ""
        raise UserError(
            f"{option}: {found[0]} was not written by a run of gpt2_hf, or was changed since{others}; move it "
            f"away, or choose another {option}"
        )


def foreign(run_dir: Path, deleting: bool, run_name: str) -> Iterator[Path]:
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
    yield from _foreign_events(run_dir, run_name)
    yield from _foreign_folders(run_dir, deleting)


def _foreign_folders(run_dir: Path, deleting: bool = False) -> Iterator[Path]:
    """Those under the name of a checkpoint or of the best model, and what has a temporary name."""
    for path in sorted(run_dir.iterdir()):
        if _FOLDER.match(path.name):
            yield from _foreign_in_folder(run_dir, path, deleting)
        if not path.name.startswith(TEMPORARY_PREFIX):
            continue
        name = path.name.removeprefix(TEMPORARY_PREFIX)
        staged, temporary = folders.is_folder_name(name), folders.is_file_name(name)
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
    elif path.name == folders.BEST_MODEL:
        # Weights that a checkpoint has too may be damaged with it; a run that goes on from another one keeps them.
        yield from (each for each in manifest.changed(path) if each.stat().st_nlink == 1)


def _foreign_events(run_dir: Path, name: str) -> Iterator[Path]:
    for folder in event_folders(run_dir, name):
        if folder.exists() and not folder.is_dir():
            yield folder
        yield from (path for path in event_files(folder) if not is_own_event_file(path))


def _is_own_temporary(run_dir: Path, path: Path) -> bool:
    """Whether it may be a file that a killed process had begun."""
    name = path.name.removeprefix(TEMPORARY_PREFIX)
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
