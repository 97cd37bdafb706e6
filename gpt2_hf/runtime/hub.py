"""Is the model and data hub there? Asked before any library starts its retries, and again a while after it was not."""

import contextlib
import importlib
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, constants, create_branch, create_commit, upload_folder
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session

from ..errors import SaveError, UserError, first_line
from .command_lines import as_typed

# What the hub's client raises: its library's own errors, such as those of a connection that breaks, are no OSErrors.
CONNECTION_ERRORS = (OSError, HTTPError)

_PROBE_SECONDS = 10
# A start asks several times, and must not wait for each; a notebook may outlive a network that is away.
_SECONDS_UNTIL_ASKED_AGAIN = 60


@dataclass
class _Answer:
    """Whether the hub was there when it was asked, and whose `HF_HUB_OFFLINE` was set because it was not."""

    is_there: bool = False
    seconds: float = -math.inf
    switched: list[Any] = field(default_factory=list)


_last = _Answer()


def is_hub_id(name: str) -> bool:
    """Whether `name` can only mean a repository of the hub, and not a local folder."""
    return not os.path.isdir(os.path.expanduser(name)) and not is_local_path(name)


def is_local_path(name: str) -> bool:
    """Whether `name` is written as a path, whether or not it exists."""
    return name.startswith((".", "~")) or "\\" in name or os.path.isabs(name)


def upload_model(
    folder: Path,
    repo_id: str,
    token: str | None = None,
    revision: str | None = None,
    left_out: Sequence[str] = (),
    further_files: Mapping[str, Path] | None = None,
) -> str:
    """Upload a model's folder, its card with it, to a repository of the hub that exists.

    Args:
        folder: of the model.
        repo_id: the repository, `USER/NAME`.
        token: of the hub; that of `hf auth login` or of the environment when left out.
        revision: branch of the repository, made if it is not there.
        left_out: names of files that stay here.
        further_files: files beside the model by their paths in the repository; they are a second commit. In
            `runs/NAME/…` the hub looks for TensorBoard files to draw.

    Returns:
        The address of what was uploaded.

    Raises:
        SaveError: if the hub cannot be reached or refuses; with the command that uploads what is missing.
    """
    login: dict[str, Any] = {"repo_id": repo_id, "token": token, "revision": revision}
    further = _commands_for_files(repo_id, revision, further_files or {})
    again = [_hf_upload(repo_id, str(folder), revision, *(f"--exclude={name}" for name in left_out)), *further]
    try:
        if revision is not None:
            create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        commit = upload_folder(
            folder_path=folder, ignore_patterns=list(left_out), commit_message="Trained with gpt2_hf", **login
        )
        if further_files:
            again = further
            files = [CommitOperationAdd(name, path) for name, path in further_files.items()]
            create_commit(operations=files, commit_message="Files beside the model", **login)
    except Exception as error:  # of whichever HTTP library the hub's client is built on
        missing = "the files beside the model are " if again == further else ""
        raise SaveError(
            f"the run is over and saved, but {missing}not uploaded "
            f"({first_line(error)}); try again with: {' && '.join(again)}"
        ) from error
    return str(commit.commit_url)


def _commands_for_files(repo_id: str, revision: str | None, files: Mapping[str, Path]) -> list[str]:
    """One for each folder that has some; other files in it stay here."""
    folders: dict[tuple[str, str], list[str]] = {}
    for name, path in files.items():
        folders.setdefault((str(path.parent), name.rpartition("/")[0]), []).append(path.name)
    return [
        _hf_upload(repo_id, local, revision, *(f"--include={name}" for name in names), path_in_repo=remote)
        for (local, remote), names in folders.items()
    ]


def _hf_upload(repo_id: str, local: str, revision: str | None, *options: str, path_in_repo: str = "") -> str:
    """A command of the hub's client, as it is typed."""
    words = ["hf", "upload", repo_id, local, *([path_in_repo] if path_in_repo else [])]
    return as_typed(*words, *([f"--revision={revision}"] if revision else []), *options)


def ensure_hub_or_offline() -> bool:
    """Probe the hub; if it cannot be reached, put the libraries into offline mode, where they use their caches.

    Without this an unreachable hub costs more than 20 seconds of retries for each of several requests.

    Returns:
        Whether the hub answered.

    Raises:
        UserError: if HF_ENDPOINT is no address.
    """
    if time.monotonic() - _last.seconds > _SECONDS_UNTIL_ASKED_AGAIN:
        while _last.switched:
            _last.switched.pop().HF_HUB_OFFLINE = False  # with which the hub's client asks nobody
    if constants.HF_HUB_OFFLINE or _last.is_there:
        return not constants.HF_HUB_OFFLINE
    answer: Future[bool] = Future()
    # in a thread, because the timeout of a connection counts anew for each address of a name
    threading.Thread(target=_probe, args=(answer,), daemon=True).start()
    with contextlib.suppress(TimeoutError):
        _last.is_there = answer.result(_PROBE_SECONDS)
    if not _last.is_there:
        import datasets

        _last.seconds = time.monotonic()
        _last.switched = [one for one in (constants, datasets.config) if not one.HF_HUB_OFFLINE]
        for one in _last.switched:
            one.HF_HUB_OFFLINE = True
    return _last.is_there


def _probe(answer: Future[bool]) -> None:
    """Give the answer, or the error, of one request."""
    try:
        answer.set_result(_answers())
    except BaseException as error:
        answer.set_exception(error)


def _answers() -> bool:
    """By the client that is used afterwards, with its proxies, certificates and login."""
    http = importlib.import_module(HTTPError.__module__)  # httpx2; httpx in older releases of the hub's client
    try:
        client = get_session()
    except (ImportError, OSError, ValueError, http.InvalidURL) as error:
        problem = f"the proxy or the certificates of this environment cannot be used ({first_line(error)})"
        raise UserError(
            f"{problem}; correct HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE or SSL_CERT_DIR, or install what they need"
        ) from error
    try:
        # half the time, so that a second address has its turn
        client.head(constants.ENDPOINT, timeout=_PROBE_SECONDS / 2, follow_redirects=False)
    except (http.InvalidURL, http.UnsupportedProtocol) as error:
        address = constants.ENDPOINT.rpartition("@")[2]  # without a login
        raise UserError(f"HF_ENDPOINT: {address} is no address; begin it with https://") from error
    except HTTPError:
        return False
    return True  # if only with an error
