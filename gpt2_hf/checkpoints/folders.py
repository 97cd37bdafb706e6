"""Checkpoints that are complete or absent, found by name, and checked before they are used.

A checkpoint is written to a staging folder, synced, described by `manifest.json` (size and SHA-256 of every
file, written last), and only then renamed to `checkpoint-<step>`. Names such as `best_model` or
`checkpoint_epoch_3` are entries of `checkpoint_names.json`, not links, so they work on every file system.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError

MANIFEST_NAME = "manifest.json"
NAMES_FILE = "checkpoint_names.json"
RESOLVED_CONFIG_NAME = "resolved_config.json"
TRAINER_STATE_NAME = "trainer_state.json"
BEST_MODEL = "best_model"
LATEST = "latest"
TIME_LIMIT = "checkpoint_time_limit"

# "tmp-" keeps staging folders out of every `checkpoint-*` pattern, ours and transformers'.
_STAGING_PREFIX = "tmp-"
_OLD_SUFFIX = ".replaced"
_ABANDONED_PREFIX = "abandoned-"
_FOLDER = re.compile(r"^checkpoint-(\d+)$")
# What has a temporary name while it is written; run.lock is that of `run_lock`.
_OWN_FOLDER = re.compile(rf"^(checkpoint-\d+|{BEST_MODEL})$")
_OWN_FILE = re.compile(rf"^({re.escape(NAMES_FILE)}|{re.escape(RESOLVED_CONFIG_NAME)}|run\.lock-.+)$")
_STEP_NAME = re.compile(r"^checkpoint_step_(\d+)$")
# Files that run code when they are read; none is ever written here.
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# What a folder needs to be loaded with from_pretrained.
_MODEL_FILE_PATTERNS = ("*.json", "model*.safetensors", "adapter_model*.safetensors", "*.py", "*.txt", "*.jinja")
_NOT_MODEL_FILES = (MANIFEST_NAME, TRAINER_STATE_NAME)


def checkpoint_folder(step: int) -> str:
    """Folder name of the checkpoint of an optimizer step."""
    return f"checkpoint-{step}"


def epoch_name(epoch: int) -> str:
    """Name of the checkpoint at the end of an epoch, counted from 1."""
    return f"checkpoint_epoch_{epoch}"


def step_of(folder: str | Path) -> int:
    """The optimizer step of a checkpoint folder, −1 if it is none."""
    match = _FOLDER.match(Path(folder).name)
    return int(match[1]) if match else -1


# ---- writing ----


def open_staging(output_dir: str | Path, name: str) -> Path:
    """Create an empty staging folder for `name`."""
    staging = staging_of(Path(output_dir) / name)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def staging_of(target: Path) -> Path:
    """Where a folder is filled before it gets its name."""
    return target.with_name(_STAGING_PREFIX + target.name)


def commit(staging: Path, target: Path) -> None:
    """Turn a filled staging folder into `target`, replacing an older one; a crash leaves one of them whole."""
    write_manifest(staging)
    replaced = target.with_name(target.name + _OLD_SUFFIX)
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(target, replaced)
    os.replace(staging, target)
    _sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_manifest(folder: Path) -> None:
    """Record size and SHA-256 of every file of the folder, after syncing them to the disk."""
    follow_umask(folder)
    entries = {}
    for path in _files_of(folder):
        _sync(path)
        entries[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    write_json(folder / MANIFEST_NAME, {"files": entries})
    for directory in {path.parent for path in _files_of(folder)}:
        _sync(directory)


def follow_umask(folder: Path) -> None:
    """Give every file of a folder the permissions of a new file: safetensors lets only the owner read its own."""
    probe = folder / f"{_STAGING_PREFIX}new-file"
    probe.touch()  # to ask for the umask is to change it, for every thread
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in _files_of(folder):
        if stat.S_IMODE(path.stat().st_mode) != mode:
            with contextlib.suppress(PermissionError):  # a mounted file system whose permissions are fixed
                path.chmod(mode)


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step."""
    temporary = path.with_name(_STAGING_PREFIX + path.name)
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)


def publish_best_model(checkpoint: Path, output_dir: Path) -> None:
    """Make `best_model/` the from_pretrained-ready part of a checkpoint."""
    staging = open_staging(output_dir, BEST_MODEL)
    for pattern in _MODEL_FILE_PATTERNS:
        for source in checkpoint.glob(pattern):
            if source.name not in _NOT_MODEL_FILES:
                _link_or_copy(source, staging / source.name)
    commit(staging, output_dir / BEST_MODEL)


def _link_or_copy(source: Path, target: Path) -> None:
    """No second copy of the weights where the file system can do it; small files may be edited, and are copied."""
    if source.suffix == ".safetensors":
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def repair(output_dir: str | Path) -> None:
    """Clear what an interrupted save left: staging folders, and a replaced folder whose successor never came.

    Only what has a name that is given here: the user may keep other things in the folder.
    """
    for path in sorted(Path(output_dir).glob(f"*{_OLD_SUFFIX}")):
        successor = path.with_name(path.name.removesuffix(_OLD_SUFFIX))
        if not _OWN_FOLDER.match(successor.name):
            continue
        if successor.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.replace(path, successor)
    for path in Path(output_dir).glob(f"{_STAGING_PREFIX}*"):
        name = path.name.removeprefix(_STAGING_PREFIX)
        if _OWN_FOLDER.match(name):
            shutil.rmtree(path, ignore_errors=True)
        elif _OWN_FILE.match(name):
            path.unlink(missing_ok=True)


# ---- names ----


def read_names(output_dir: str | Path) -> dict[str, str]:
    """Names of checkpoints and the folders they stand for; names whose folder is gone are left out."""
    output_dir = Path(output_dir)
    try:
        names = json.loads((output_dir / NAMES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Names are a convenience; without the file the checkpoints are still there under their steps.
        return {}
    if not isinstance(names, dict):
        return {}
    return {name: folder for name, folder in names.items() if _is_inside(folder) and (output_dir / folder).is_dir()}


def _is_inside(folder: object) -> bool:
    """Whether an entry is a checkpoint of the run itself; a file from elsewhere might point out of it."""
    return isinstance(folder, str) and _FOLDER.fullmatch(folder) is not None


def add_names(output_dir: str | Path, folder: str, names: list[str]) -> None:
    """Let further names stand for a checkpoint folder."""
    if names:
        write_json(Path(output_dir) / NAMES_FILE, {**read_names(output_dir), **dict.fromkeys(names, folder)})


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders of a run, oldest step first."""
    output_dir = Path(output_dir)
    if not output_dir.is_dir():
        return []
    return sorted((path for path in output_dir.iterdir() if path.is_dir() and step_of(path) >= 0), key=step_of)


def rotate(output_dir: str | Path, keep_last: int | None, just_saved: str = "") -> None:
    """Delete all but the last few checkpoints; those that a name stands for stay, and the one just saved."""
    if keep_last is None:
        return
    named = {just_saved, *read_names(output_dir).values()}
    for path in list_checkpoints(output_dir)[:-keep_last]:
        if path.name not in named:
            shutil.rmtree(path, ignore_errors=True)


def set_aside_after(output_dir: str | Path, step: int) -> list[str]:
    """Rename the checkpoints after a step, because a run goes on from it; `latest` must not find the old branch.

    Returns:
        The names of the folders they are now in.
    """
    renamed = []
    for path in list_checkpoints(output_dir):
        if step_of(path) > step:
            aside = path.with_name(f"{_ABANDONED_PREFIX}{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            renamed.append(aside.name)
    return renamed


# ---- reading ----


def damage(folder: str | Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; `None` if every file is as it was written."""
    folder = Path(folder)
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{MANIFEST_NAME} is missing"
    except PermissionError as error:
        return f"{MANIFEST_NAME} cannot be read: {error.strerror}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST_NAME} is damaged"
    if not isinstance(files, dict) or not all(_is_entry(entry) for entry in files.values()):
        return f"{MANIFEST_NAME} is damaged"
    for path in _files_of(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix in _PICKLE_SUFFIXES and name not in files:
            return f"{name} was put there by somebody else and could run code"
    for name, entry in files.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size:,} bytes instead of {entry['size']:,}"
            if _sha256(path) != entry["sha256"]:
                return f"{name} does not have the content that was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def unreadable(folder: Path) -> str | None:
    """What of a saved model this user has no permission to read, in a few words; `None` if there is no such file."""
    try:
        os.listdir(folder)  # glob finds nothing in a folder that may not be listed
        for pattern in _MODEL_FILE_PATTERNS:
            for path in sorted(folder.glob(pattern)):
                if not os.path.isdir(path):
                    open(path, "rb").close()
    except PermissionError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return None


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and {"size", "sha256"} <= entry.keys()


def newest_valid(output_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint of a run, and a line for each damaged one that was passed over."""
    passed_over: list[str] = []
    for path in reversed(list_checkpoints(output_dir)):
        problem = damage(path)
        if problem is None:
            return path, passed_over
        passed_over.append(f"{path} is damaged ({problem}) and is passed over")
    return None, passed_over


def resolve(reference: str, output_dir: str | Path) -> Path:
    """Find the checkpoint folder that a name or path stands for.

    Args:
        reference: `latest`, a name, a folder name, or a path to any of these.
        output_dir: the run in which a bare name is looked up.

    Raises:
        UserError: if there is no such checkpoint; the message lists those there are.
    """
    reference = os.path.expanduser(reference.rstrip("/\\") or reference)
    given = Path(reference)
    is_bare = given.name == reference
    run = Path(output_dir) if is_bare else given.parent
    name = given.name
    candidates: list[Path] = []
    if name == LATEST:
        newest, _ = newest_valid(run)
        candidates = [newest] if newest is not None else []
    elif name in (names := read_names(run)):
        candidates = [run / names[name]]
    elif match := _STEP_NAME.match(name):
        candidates = [run / checkpoint_folder(int(match[1]))]
    candidates += [run / name, given]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise UserError(f"there is no checkpoint {reference!r}; {_available(run)}")


def resolve_model(reference: str, output_dir: str | Path) -> Path:
    """Like `resolve`, for loading weights: a folder that is there is taken as it is, `best_model` among them."""
    given = Path(os.path.expanduser(reference))
    for folder in (given, Path(output_dir) / given if given.name == reference else given):
        if (folder / "config.json").is_file():
            return folder
    return resolve(reference, output_dir)


def _available(run: Path) -> str:
    names = [LATEST, *read_names(run), *(path.name for path in list_checkpoints(run))]
    if len(names) == 1:
        return f"{run} holds no checkpoints"
    return f"{run} has {', '.join(names)}"


def holds_run(output_dir: str | Path) -> bool:
    """Whether a folder holds something of an earlier run that a new one would overwrite."""
    output_dir = Path(output_dir)
    marks = (RESOLVED_CONFIG_NAME, BEST_MODEL, NAMES_FILE)
    return bool(list_checkpoints(output_dir)) or any((output_dir / mark).exists() for mark in marks)


def delete_run(output_dir: str | Path) -> None:
    """Delete what a run left in a folder, and nothing else that may be there."""
    output_dir = Path(output_dir)
    if not holds_run(output_dir):
        return
    left = (BEST_MODEL, "runs", NAMES_FILE, RESOLVED_CONFIG_NAME, TRAINER_STATE_NAME, "README.md", "curves.png")
    results = [path.name for path in output_dir.glob("*_results.json")]
    abandoned = output_dir.glob(f"{_ABANDONED_PREFIX}checkpoint-*")
    for path in [*list_checkpoints(output_dir), *abandoned, *(output_dir / name for name in [*left, *results])]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# ---- helpers ----


def _files_of(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST_NAME)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, where the platform can."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder for syncing; its renames are journalled
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not sync folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
