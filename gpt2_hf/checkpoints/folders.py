"""Checkpoints that are complete or absent, found by name, and checked before they are used.

A checkpoint is written to a staging folder, synced, described by `manifest.json` (size and SHA-256 of every
file, written last), and only then renamed to `checkpoint-<step>`. Names such as `best_model` or
`checkpoint_epoch_3` are entries of `checkpoint_names.json`, not links, so they work on every file system.

Only folders that were written so are ever moved or deleted, and files that somebody has added to one are kept.
"""

import contextlib
import itertools
import os
import re
import shutil
from pathlib import Path

from ..errors import UserError
from ..runtime.files import TEMPORARY_PREFIX, read_object, sync, write_json
from . import manifest, written
from .written import BEST_MODEL, NAMES_FILE, RESOLVED_CONFIG_NAME, TRAINER_STATE_NAME

LATEST = "latest"
TIME_LIMIT = "checkpoint_time_limit"
# What a run calls a checkpoint, which is no model of the hub even where there is no run.
CHECKPOINT_NAME = re.compile(rf"{LATEST}|{BEST_MODEL}|checkpoint[-_].+")

OLD_SUFFIX = ".replaced"
ABANDONED_PREFIX = "abandoned-"
# Of a Trainer without a job: transformers' `push_to_hub` uploads all of the folder but checkpoints and this.
UNPUBLISHED_PREFIX = f"_{ABANDONED_PREFIX}"
_FOLDER = re.compile(r"^checkpoint-(\d+)$")
# What has a temporary name while it is written; run.lock is that of `run_lock`. `ownership` asks for the same names.
_OWN_FOLDER = re.compile(rf"^(checkpoint-\d+|{BEST_MODEL})$")
_OWN_FILE = re.compile(rf"^({'|'.join(map(re.escape, (*written.FILE_NAMES, written.RECORD_NAME)))}|run\.lock-.+)$")
_STEP_NAME = re.compile(r"^checkpoint_step_(\d+)$")
# Files that run code when they are read; none is ever written here.
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# What from_pretrained reads of a folder, whatever else there is in it.
_TEXT_PATTERNS = ("*.json", "*.py", "*.txt", "*.jinja")
_WEIGHT_PATTERNS = ("model*.safetensors", "adapter_model*.safetensors")
# The other tensors of a checkpoint are the state of its training.
_CHECKPOINT_FILE_PATTERNS = (*_TEXT_PATTERNS, "*.safetensors")


def checkpoint_folder(step: int) -> str:
    """Folder name of the checkpoint of an optimizer step."""
    return f"checkpoint-{step}"


def epoch_name(epoch: int) -> str:
    """Name of the checkpoint at the end of an epoch, counted from 1."""
    return f"checkpoint_epoch_{epoch}"


def is_folder_name(name: str) -> bool:
    """Whether a run gives this name to a folder that it has filled under a temporary one."""
    return _OWN_FOLDER.match(name) is not None


def is_file_name(name: str) -> bool:
    """Whether a run gives this name to a file that it has written under a temporary one."""
    return _OWN_FILE.match(name) is not None


def step_of(folder: str | Path) -> int:
    """The optimizer step of a checkpoint folder, −1 if it is none."""
    match = _FOLDER.match(Path(folder).name)
    return int(match[1]) if match else -1


# ---- writing ----


def open_staging(output_dir: str | Path, name: str) -> Path:
    """Create an empty staging folder for `name`, of a checkpoint or the best model.

    Raises:
        FileExistsError: if there is one of that name that is somebody else's.
    """
    staging = staging_of(Path(output_dir) / name)
    if is_own_staging(staging):
        _delete(staging)
    return make_staging(staging)


def make_staging(staging: Path) -> Path:
    """Create an empty staging folder of any name; raises what `open_staging` does."""
    if is_marked(staging):
        _delete(staging)
    staging.mkdir(parents=True)
    (staging / manifest.STAGING_MARK).touch()
    return staging


def close_staging(staging: Path) -> None:
    """Take the mark from a staging folder that is complete."""
    (staging / manifest.STAGING_MARK).unlink(missing_ok=True)


def delete_staging(target: Path) -> None:
    """Delete the staging folder of `target`, if it is a run's."""
    if is_own_staging(staging_of(target)):
        _delete(staging_of(target))


def is_own_staging(folder: Path) -> bool:
    """Whether a folder with the temporary name of a checkpoint or the best model is one that a run was filling.

    A version without the mark may have filled it. Under any other name such a folder may be somebody's model.
    """
    if folder.is_symlink():
        return False
    if is_marked(folder) or is_own(folder):
        return True
    return read_object(folder / "config.json").get("model_type") == "gpt2_hf"


def is_marked(folder: Path) -> bool:
    """Whether the folder is one that a process was filling; one without anything in it may be."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    return (folder / manifest.STAGING_MARK).exists() or not any(folder.iterdir())


def staging_of(target: Path) -> Path:
    """Where a folder is filled before it gets its name."""
    return target.with_name(TEMPORARY_PREFIX + target.name)


def commit(staging: Path, target: Path, checkpoint: str | None = None) -> None:
    """Turn a filled staging folder into `target`, replacing an older one; a crash leaves one of them intact.

    Args:
        staging: the filled folder.
        target: what it becomes.
        checkpoint: for the manifest, the name of the checkpoint that it was made from.

    Raises:
        FileExistsError: if the older one, or one of its temporary name, is somebody else's.
    """
    manifest.write(staging, checkpoint)
    close_staging(staging)
    replaced = target.with_name(target.name + OLD_SUFFIX)
    for path in (target, replaced):
        if os.path.lexists(path) and not is_own(path):
            raise FileExistsError(f"{path} was not written by a run of gpt2_hf; it is left as it is")
    if target.exists():
        if replaced.exists():
            _retire(replaced, target)
        os.replace(target, replaced)
    else:
        _forget_names(target)
    os.replace(staging, target)
    sync(target.parent)
    if replaced.exists():
        _retire(replaced, target)


def _retire(replaced: Path, successor: Path) -> None:
    """Delete a folder that has a successor, which takes over what somebody has added to it.

    Where the successor has a file of the same name, somebody's is kept beside it.
    """
    kept = _free_name(successor.with_name(f"{successor.name}.kept"))
    for path in extras(replaced):
        name = path.relative_to(replaced)
        moved = successor / name
        if os.path.lexists(moved):
            moved = kept / name
            print(f"{successor / name} was changed by somebody else; that file is now {moved}", flush=True)
        moved.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, moved)
    _delete(replaced)


def _free_name(path: Path) -> Path:
    """The path, with a number behind its name if there is something already."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([path], numbered) if not os.path.lexists(place))


def publish_best_model(checkpoint: Path, output_dir: Path) -> None:
    """Make `best_model/` the from_pretrained-ready part of a checkpoint."""
    staging = open_staging(output_dir, BEST_MODEL)
    for source in model_files(checkpoint):
        target = staging / source.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)  # an adapter with a name of its own has a folder
        _link_or_copy(source, target)
    commit(staging, output_dir / BEST_MODEL, checkpoint.name)


def source_of_best_model(output_dir: Path) -> str | None:
    """Name of the checkpoint that an intact `best_model` was made from, and which may be gone; `None` if unknown."""
    best = output_dir / BEST_MODEL
    if manifest.damage(best) is not None:
        return None
    # a version that did not note it has named the checkpoint
    names = read_object(output_dir / NAMES_FILE)
    source = read_object(best / manifest.MANIFEST_NAME).get("checkpoint", names.get(BEST_MODEL))
    return source if isinstance(source, str) else None


def saved_model(output_dir: Path, best_step: int | None, last_step: int) -> Path | None:
    """The model of a run, as its state says: the best one, or else that of the last step.

    A `best_model` that was made at another step is of another branch, or is not compared with any more.

    Args:
        output_dir: the run.
        best_step: of its best evaluation; `None` without one.
        last_step: that it has reached.

    Returns:
        Its folder; `None` if the model was not saved, or was damaged since.
    """
    if best_step and source_of_best_model(output_dir) == checkpoint_folder(best_step):
        return output_dir / BEST_MODEL
    last = output_dir / checkpoint_folder(last_step)
    return last if manifest.damage(last) is None else None


def is_best_model(model: Path | None) -> bool:
    """Whether a model that `saved_model` gives is the best one."""
    return model is not None and model.name == BEST_MODEL


def note_source_of_best_model(output_dir: Path, name: str) -> None:
    """Let `source_of_best_model` find the name of the checkpoint where an earlier version did not note it."""
    path = output_dir / BEST_MODEL / manifest.MANIFEST_NAME
    content = read_object(path)
    if "checkpoint" not in content:
        write_json(path, {**content, "checkpoint": name})


def model_files(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint that `from_pretrained` needs.

    Those that the run wrote, without the state of its training and without pickles: a tokenizer may call its
    vocabulary anything. What somebody has added is not among them, since they are uploaded.
    """
    recorded = manifest.entries(checkpoint) or {}
    files = (path for path in manifest.files_of(checkpoint) if manifest.name_in(checkpoint, path) in recorded)
    return [path for path in files if _is_of_model(path)]


def _is_of_model(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return any(path.match(pattern) for pattern in _WEIGHT_PATTERNS)
    return path.name != TRAINER_STATE_NAME and path.suffix not in _PICKLE_SUFFIXES


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
    for path in sorted(Path(output_dir).glob(f"*{OLD_SUFFIX}")):
        successor = path.with_name(path.name.removesuffix(OLD_SUFFIX))
        if not is_folder_name(successor.name) or not is_own(path):
            continue
        if successor.exists():
            _retire(path, successor)
        else:
            os.replace(path, successor)
    for path in Path(output_dir).glob(f"{TEMPORARY_PREFIX}*"):
        name = path.name.removeprefix(TEMPORARY_PREFIX)
        if is_folder_name(name):
            if is_own_staging(path):
                _delete(path)
        elif is_file_name(name):
            path.unlink(missing_ok=True)


# ---- names ----


def read_names(output_dir: str | Path) -> dict[str, str]:
    """Names of checkpoints and the folders they stand for; names whose folder is gone are left out.

    Names are a convenience: without the file the checkpoints are still there under their steps.
    """
    output_dir = Path(output_dir)
    return {
        name: folder
        for name, folder in read_object(output_dir / NAMES_FILE).items()
        # only a checkpoint of this very run, whatever somebody has written into the file
        if isinstance(folder, str) and _FOLDER.match(folder) and (output_dir / folder).is_dir()
    }


def add_names(output_dir: str | Path, folder: str, names: list[str]) -> None:
    """Let further names stand for a checkpoint folder."""
    if names:
        written.write_json(Path(output_dir), NAMES_FILE, {**read_names(output_dir), **dict.fromkeys(names, folder)})


def _forget_names(checkpoint: Path) -> None:
    """Let no name of an earlier checkpoint stand for a new one that gets its folder."""
    names = read_object(checkpoint.parent / NAMES_FILE)
    left = {name: folder for name, folder in names.items() if folder != checkpoint.name}
    if left != names and written.is_own(checkpoint.parent, NAMES_FILE):
        written.write_json(checkpoint.parent, NAMES_FILE, left)


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders of a run, oldest step first."""
    output_dir = Path(output_dir)
    if not output_dir.is_dir():
        return []
    return sorted((path for path in output_dir.iterdir() if path.is_dir() and step_of(path) >= 0), key=step_of)


def rotate(output_dir: str | Path, keep_last: int | None, just_saved: str = "") -> list[tuple[Path, Path]]:
    """Delete all but the last few checkpoints; those that a name stands for stay, and the one just saved.

    So does one that is not a run's, and one to which somebody has added a file. Below 1, transformers keeps all.

    Returns:
        The checkpoints that stay because of a file that somebody has added, and that file.
    """
    if keep_last is None or keep_last < 1:
        return []
    added: list[tuple[Path, Path]] = []
    named = {just_saved, *read_names(output_dir).values()}
    for path in list_checkpoints(output_dir)[:-keep_last]:
        if path.name in named or not is_own(path):
            continue
        if files := extras(path):
            added.append((path, files[0]))
        else:
            _delete(path)
    return added


def set_aside_after(
    output_dir: str | Path, step: int, prefix: str = ABANDONED_PREFIX, resumed: Path | None = None
) -> list[str]:
    """Rename the checkpoints after a step, because a run is resumed from it; `latest` must not find the old branch.

    Args:
        output_dir: the run.
        step: of the checkpoint that is resumed from.
        prefix: put before their names; what has been set aside under such a name is replaced.
        resumed: that checkpoint, if it was set aside itself; it stays.

    Returns:
        The names of the folders they are now in.

    Raises:
        UserError: if one of these would replace files that no run wrote.
    """
    renamed = places_aside(output_dir, step, prefix, resumed)
    for path, aside in renamed:
        if aside.is_symlink():
            aside.unlink()
        elif aside.exists():
            _delete(aside)
        os.replace(path, aside)
    return [aside.name for _, aside in renamed]


def places_aside(
    output_dir: str | Path, step: int, prefix: str, resumed: Path | None = None
) -> list[tuple[Path, Path]]:
    """The checkpoints that `set_aside_after` renames, and to what; raises what it does."""
    later = [path for path in list_checkpoints(output_dir) if step_of(path) > step]
    paths = [path for path in later if path.is_symlink() or is_own(path)]  # to rename a link moves nothing else
    places = [path.with_name(f"{prefix}{path.name}") for path in paths]
    if resumed is not None:
        places = [_free_name(aside) if aside.exists() and aside.samefile(resumed) else aside for aside in places]
    for aside in places:
        if os.path.lexists(aside) and not aside.is_symlink() and (not is_own(aside) or extras(aside)):
            raise UserError(f"{aside} already exists and holds files not of this run; move it away")
    return list(zip(paths, places, strict=True))


# ---- reading ----


def unreadable(folder: Path) -> str | None:
    """What of a saved model this user has no permission to read, in a few words; `None` if there is no such file."""
    try:
        os.listdir(folder)  # glob finds nothing in a folder that may not be listed
        for pattern in (*_TEXT_PATTERNS, *_WEIGHT_PATTERNS):
            for path in sorted(folder.glob(pattern)):
                if not os.path.isdir(path):
                    open(path, "rb").close()
    except PermissionError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    return None


def is_own(folder: Path) -> bool:
    """Whether a run wrote this checkpoint or best model: it has a manifest as they have, or a run's config.

    An empty folder may be taken for one.
    """
    if folder.is_symlink() or not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    return manifest.entries(folder) is not None or written.is_config_of_run(folder / RESOLVED_CONFIG_NAME)


def extras(folder: Path) -> list[Path]:
    """Files that somebody has added to a folder of a run, or has put in place of those of the best model."""
    files = manifest.entries(folder)
    reported: set[str] = set()
    found: list[Path] = []
    if folder.name.removesuffix(OLD_SUFFIX) == BEST_MODEL:
        reported = {name.removeprefix(f"{BEST_MODEL}/") for name in written.BEST_MODEL_FILES}
        found = manifest.changed(folder)
    for path in manifest.files_of(folder):
        name = manifest.name_in(folder, path)
        if name in reported and written.is_own(folder.parent, f"{BEST_MODEL}/{name}", path):
            continue
        # without a manifest, by the kinds of files that a checkpoint has
        known = name in files if files is not None else any(path.match(kind) for kind in _CHECKPOINT_FILE_PATTERNS)
        if not known:
            found.append(path)
    return found


def newest_valid(output_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint of a run, and a line for each damaged one that was skipped."""
    passed_over: list[str] = []
    for path in reversed(list_checkpoints(output_dir)):
        problem = manifest.damage(path)
        if problem is None:
            return path, passed_over
        passed_over.append(f"{path} is damaged ({problem}) and is skipped")
    return None, passed_over


def newest_intact(output_dir: str | Path) -> Path | None:
    """The newest undamaged checkpoint, for a message; `None` also where the folder cannot be read."""
    try:
        return newest_valid(output_dir)[0]
    except OSError:
        return None


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
    """Delete what a run left in a folder, but for its event files, and nothing else that may be there.

    A folder to which somebody has added a file stays.
    """
    output_dir = Path(output_dir)
    prefixes = (ABANDONED_PREFIX, UNPUBLISHED_PREFIX)
    abandoned = [path for prefix in prefixes for path in output_dir.glob(f"{prefix}checkpoint-*")]
    for path in [*list_checkpoints(output_dir), *abandoned, output_dir / BEST_MODEL]:
        if is_own(path) and not extras(path):
            _delete(path)
    # the config last: by it the files of versions without a record are known
    for name in sorted(written.FILE_NAMES, key=lambda name: name == RESOLVED_CONFIG_NAME):
        written.delete(output_dir, name)
    if written.is_record(output_dir / written.RECORD_NAME):
        (output_dir / written.RECORD_NAME).unlink()


# ---- helpers ----


def _delete(folder: Path) -> None:
    """Delete a folder of a run, what shows that it is one last: a process that is killed meanwhile leaves its mark."""
    for path in manifest.files_of(folder):
        with contextlib.suppress(OSError):  # not to be deleted
            path.unlink()
    if any(manifest.files_of(folder)):
        return  # one that another process has open: the folder is still a run's, and is deleted another time
    for name in manifest.NO_CONTENT:
        with contextlib.suppress(OSError):  # not there
            (folder / name).unlink()
    shutil.rmtree(folder, ignore_errors=True)  # folders alone
