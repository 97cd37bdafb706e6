"""Is the model and data hub there? Asked once, before any library starts its retries."""

import functools
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, constants, create_commit, upload_folder

from ..errors import SaveError, first_line

_PROBE_SECONDS = 10
_EVENTS_FOLDER = "runs"  # where the hub looks for TensorBoard files


def is_hub_id(name: str) -> bool:
    """Whether `name` can only mean a repository of the hub, and not a local folder."""
    return not os.path.isdir(os.path.expanduser(name)) and not is_local_path(name)


def is_local_path(name: str) -> bool:
    """Whether `name` is written as a path, whether or not it exists."""
    return name.startswith((".", "~")) or os.path.isabs(name)


def upload_model(
    folder: Path,
    repo_id: str,
    token: str | None = None,
    revision: str | None = None,
    left_out: Sequence[str] = (),
    events: Sequence[Path] = (),
) -> str:
    """Upload a model's folder, its card with it, to a repository of the hub that exists.

    Args:
        folder: of the model.
        repo_id: the repository, `USER/NAME`.
        token: of the hub; that of `hf auth login` or of the environment when left out.
        revision: branch of the repository.
        left_out: names of files that stay here.
        events: TensorBoard files, which become `runs/` there; the hub draws their curves.

    Returns:
        The address of what was uploaded.

    Raises:
        SaveError: if the hub cannot be reached or refuses; with the command that tries again.
    """
    login: dict[str, Any] = {"repo_id": repo_id, "token": token, "revision": revision}
    again = f"hf upload {repo_id} {folder}"
    try:
        commit = upload_folder(
            folder_path=folder, ignore_patterns=list(left_out), commit_message="Trained with gpt2_hf", **login
        )
        if events:
            again = f"hf upload {repo_id} {events[0].parent} {_EVENTS_FOLDER} --include {events[0].name}"
            files = [CommitOperationAdd(f"{_EVENTS_FOLDER}/{path.name}", path) for path in events]
            create_commit(operations=files, commit_message="Curves of the training", **login)
    except Exception as error:  # of whichever HTTP library the hub's client is built on
        raise SaveError(
            f"the run is over and saved, but not uploaded ({first_line(error)}); try again with: {again}"
        ) from error
    return str(commit.commit_url)


@functools.cache
def ensure_hub_or_offline() -> bool:
    """Probe the hub; if it cannot be reached, put the libraries into offline mode, where they use their caches.

    Without this an unreachable hub costs more than 20 seconds of retries for each of several requests.

    Returns:
        Whether the hub answered.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it answered, if only with an error
    except OSError as error:
        # OpenSSL's certificates need not be those of the hub's own client, which decides (a proxy, macOS)
        if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
            return True
        import datasets

        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
        return False
    return True
