"""The manifest of a folder that a run has written: size and SHA-256 of every file, written last.

In: a folder. Out: its `manifest.json`, or what is no longer as that says.
"""

import contextlib
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..runtime.files import TEMPORARY_PREFIX, read_object, sha256, sync, write_json

MANIFEST_NAME = "manifest.json"
# In a folder that is being filled, until it has its manifest.
STAGING_MARK = "being-written.gpt2_hf"
NO_CONTENT = (MANIFEST_NAME, STAGING_MARK)
# Names of files that run code when transformers, peft or accelerate read them, or of an index that may name some.
_READ_AS_PICKLE = re.compile(
    r"(pytorch_model|adapter_model|optimizer).*\.(bin|pt)|(scheduler|scaler)\.pt|rng_state.*\.pth|training_args\.bin"
    r"|.*\.index\.json",
    re.IGNORECASE,
)


def write(folder: Path, checkpoint: str | None = None) -> None:
    """Record size and SHA-256 of every file of the folder, after syncing them to the disk."""
    follow_umask(folder)
    described = {}
    for path in files_of(folder):
        sync(path)
        described[name_in(folder, path)] = {"size": path.stat().st_size, "sha256": sha256(path)}
    made_from = {"checkpoint": checkpoint} if checkpoint is not None else {}
    write_json(folder / MANIFEST_NAME, {"files": described, **made_from})
    for directory in {path.parent for path in files_of(folder)}:
        sync(directory)


def follow_umask(folder: Path) -> None:
    """Give every file of a folder the permissions of a new file: safetensors lets only the owner read its own."""
    probe = folder / f"{TEMPORARY_PREFIX}new-file"
    probe.touch()  # to ask for the umask is to change it, for every thread
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in files_of(folder):
        if stat.S_IMODE(path.stat().st_mode) != mode:
            with contextlib.suppress(PermissionError):  # a mounted file system whose permissions are fixed
                path.chmod(mode)


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
    for path in files_of(folder):
        name = name_in(folder, path)
        if _READ_AS_PICKLE.fullmatch(path.name) and name not in files:
            return f"{name} was put there by somebody else and could run code"
    for name, entry in files.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size:,} bytes instead of {entry['size']:,}"
            if sha256(path) != entry["sha256"]:
                return f"{name} does not have the content that was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def changed(folder: Path) -> list[Path]:
    """Files of a folder that are there, and no longer what its manifest says.

    Weights, which may be large, are not read unless they were touched after it was written.
    """
    files = entries(folder)
    if files is None:
        return []
    described = (folder / MANIFEST_NAME).stat().st_mtime_ns
    found = []
    for path in files_of(folder):
        entry, status = files.get(name_in(folder, path)), path.stat()
        if entry is None:
            continue
        untouched = path.suffix == ".safetensors" and max(status.st_mtime_ns, status.st_ctime_ns) < described
        if status.st_size != entry["size"] or not (untouched or sha256(path) == entry["sha256"]):
            found.append(path)
    return found


def entries(folder: Path) -> dict[str, Any] | None:
    """The entries of a manifest; `None` if there is none, or it is damaged or somebody else's."""
    files = read_object(folder / MANIFEST_NAME).get("files")
    return files if isinstance(files, dict) and all(map(_is_entry, files.values())) else None


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and {"size", "sha256"} <= entry.keys()


def name_in(folder: Path, path: Path) -> str:
    """A file's name in the manifest of a folder."""
    return path.relative_to(folder).as_posix()


def files_of(folder: Path) -> Iterator[Path]:
    """Every file of a folder and below it, in order, but what says that the folder is a run's."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NO_CONTENT)
