"""Where a run's TensorBoard files lie, and which of those in its folder are its own.

    runs/NAME/              everything; NAME is what TensorBoard calls the run
    runs/NAME/validation/   the validation curves, under the tags that the training curves have in the folder above

In: an output folder. Out: paths. `trainer.callbacks.tensorboard` writes the files.
"""

import contextlib
import os
import re
from pathlib import Path

from ..options.parsing import PROVENANCE_KEY
from ..runtime.files import read_object
from .written import RESOLVED_CONFIG_NAME

RUNS_FOLDER = "runs"
VALIDATION_FOLDER = "validation"
# TensorBoard reads every file with "tfevents" in its name; this ending says whose it is.
EVENT_FILE_SUFFIX = ".gpt2_hf"

_EVENT_HEADER = b"brain.Event:"
# In event files of versions without the ending; such a version wrote all options of the run under the first.
CONFIG_TAG = b"resolved_config/text_summary"
_EARLIER_EVENTS = (CONFIG_TAG, b"Nats per token")
_LONGEST_HEADER = 100
_LARGEST_SEARCHED = 1 << 20

# What a name of a folder may have on every platform, and no path in it.
_NOT_IN_NAMES = re.compile(r"[^\w.,=+@ -]")
_LONGEST_NAME = 100


def event_folder_name(run_dir: str | Path, run_name: str | None = None) -> str:
    """What a run is called in TensorBoard: its name, or else that of its folder; as the name of a folder."""
    if not run_name or run_name == str(run_dir):  # transformers' default, until it had none
        run_name = Path(os.path.abspath(run_dir)).name
    return _NOT_IN_NAMES.sub("-", run_name)[:_LONGEST_NAME].strip(" .") or "run"


def event_folders(run_dir: Path, name: str) -> list[Path]:
    """Where event files of a run may lie, whether or not the folders are there.

    Args:
        run_dir: the output folder.
        name: of the run now; it may have had another one before, which its record has, and earlier versions had none.
    """
    runs = run_dir / RUNS_FOLDER
    names = [event_folder_name(run_dir, before) for before in _recorded_names(run_dir)]
    names.append(name)
    return [runs, *(runs / one / part for one in dict.fromkeys(names) for part in ("", VALIDATION_FOLDER))]


def own_events(run_dir: Path, name: str) -> list[Path]:
    """The event files that runs wrote in an output folder; `name` is that of the run now."""
    return [path for folder in event_folders(run_dir, name) for path in event_files(folder) if is_own_event_file(path)]


def event_files(folder: Path) -> list[Path]:
    """Directly in the folder; those of other programs lie in folders of their own, and stay there."""
    return sorted(path for path in folder.glob("*tfevents*") if not path.is_dir())


def is_own_event_file(path: Path) -> bool:
    """Whether a run wrote the file, by its name and its content."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        content = file.read(_LARGEST_SEARCHED)
    if content and _EVENT_HEADER not in content[:_LONGEST_HEADER]:
        return False
    if path.name.endswith(EVENT_FILE_SUFFIX) or len(content) <= _LONGEST_HEADER:
        return True  # or it has no events
    return any(text in content for text in _EARLIER_EVENTS)


def gather_events(run_dir: Path, name: str) -> None:
    """Bring the event files of a run that is resumed together under its name, so that it stays one curve.

    It may have got another name, or begun with a version that wrote directly into `runs`.
    """
    for path in own_events(run_dir, name):
        inner = path.relative_to(run_dir / RUNS_FOLDER).parts[1:] or (path.name,)  # below the name that it had
        target = run_dir.joinpath(RUNS_FOLDER, name, *inner)
        if path.parent != target.parent and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    _remove_empty(run_dir, name)


def delete_events(run_dir: Path, name: str) -> None:
    """Delete the event files that runs wrote, and the folders that are empty then."""
    for path in own_events(run_dir, name):
        path.unlink()
    _remove_empty(run_dir, name)


def _remove_empty(run_dir: Path, name: str) -> None:
    for folder in reversed(event_folders(run_dir, name)):
        with contextlib.suppress(OSError):  # not there, or somebody else has something in it
            folder.rmdir()


def _recorded_names(run_dir: Path) -> list[str]:
    """The name that the run in a folder had when it was last started."""
    provenance = read_object(run_dir / RESOLVED_CONFIG_NAME).get(PROVENANCE_KEY)
    name = provenance.get("run_name") if isinstance(provenance, dict) else None
    return [name] if isinstance(name, str) else []
