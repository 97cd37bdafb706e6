"""Names of a run's files, and somebody else's files of these names."""

from gpt2_hf.checkpoints import written

# Every name and pattern of ours.
FILES = (
    *written.FILE_NAMES,
    *(f"tmp-{name}" for name in written.FILE_NAMES),
    *("written_files.json", "tmp-written_files.json", "run.lock", "tmp-run.lock-host-7"),
    *("runs", "runs/events.out.tfevents.1.host.7.0", "runs/events.out.tfevents.1.host.7.0.gpt2_hf"),
)
FOLDERS = [
    f"{prefix}{name}{suffix}"
    for name in ("checkpoint-7", "best_model")
    for prefix, suffix in (("", ""), ("tmp-", ""), ("", ".replaced"), ("abandoned-", ""), ("_abandoned-", ""))
    if not ("abandoned-" in prefix and name == "best_model")
]


def contents(folder):
    """Every file with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plant(folder, name, content=b"mine"):
    """Somebody else's file, or folder with a file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name in FOLDERS:
        path = path / "model.safetensors"
        path.parent.mkdir()
    path.write_bytes(content)
