"""gpt2_hf.runtime.hub: an unreachable hub costs seconds, not minutes, and says what to do."""

import http.client
import os
import shlex
import socket
import ssl
import threading
import time
import urllib.error
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import constants
from huggingface_hub.cli import upload as cli_upload
from huggingface_hub.cli.hf import app
from huggingface_hub.utils import filter_repo_objects

from gpt2_hf.errors import SaveError, UserError
from gpt2_hf.runtime import hub
from gpt2_hf.runtime.hub import ensure_hub_or_offline, is_hub_id, is_local_path, upload_model

from ..conftest import python

IMPORTS = """
import time
from gpt2_hf.options.arguments import DataArguments
from gpt2_hf.data import load_data
from gpt2_hf.errors import UserError
from gpt2_hf.data.tokenizer import load_tokenizer
begin = time.monotonic()
"""
LOAD_DATA = """
try:
    load_data(DataArguments(), load_tokenizer(), 64)
except UserError as error:
    print(error)
"""
LOAD_GPT2 = """
print([load_tokenizer(name)("Hello world").input_ids for name in (None, "openai-community/gpt2")])
"""
LOAD_TOKENIZER = """
try:
    load_tokenizer("someone/some-tokenizer")
except UserError as error:
    print(error)
"""


def run_without_hub(code, tmp_path, endpoint):
    """What a program prints, what it says beside that, and its seconds without its imports."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    environment.pop("HF_HUB_OFFLINE", None)
    environment.pop("HF_DATASETS_CACHE", None)
    result = python(f"{IMPORTS}{code}print(time.monotonic() - begin)", env=environment)
    assert result.returncode == 0, result.stderr
    *lines, seconds = result.stdout.splitlines()
    return lines, result.stderr, float(seconds)


def test_refused_connection(tmp_path):
    """With the hub's port closed, data and tokenizer give one line each with the remedy, soon, without retries.

    GPT-2's own tokenizer needs no hub, with and without its name.
    """
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: a connection is refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        lines, errors, seconds = run_without_hub(LOAD_GPT2 + LOAD_TOKENIZER + LOAD_DATA, tmp_path, endpoint)
    ids_line, tokenizer_line, data_line = lines
    assert ids_line == str([[15496, 995]] * 2)
    assert tokenizer_line.startswith("--tokenizer_name: ") and "give a folder" in tokenizer_line
    assert data_line.startswith("--dataset_name: ") and "--train_file" in data_line
    assert "etry" not in errors and "Traceback" not in errors
    assert seconds < 30


@pytest.mark.parametrize("endpoint", ["hub.invalid", "http://hub.invalid:port"])
def test_an_endpoint_that_is_no_address(monkeypatch, endpoint):
    """HF_ENDPOINT without a scheme or with a bad port is one line, not a traceback."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(UserError, match=r"HF_ENDPOINT: .* is no address .*; begin it with https://"):
        ensure_hub_or_offline.__wrapped__()


@pytest.mark.slow
def test_answers_nothing(tmp_path):
    """A hub that accepts connections and never answers is given up within 30 s, after few connections."""
    connections = []
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def accept():
            while True:
                try:
                    connections.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        lines, _, seconds = run_without_hub(LOAD_DATA, tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}")
        attempts = len(connections)
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    for connection in connections:
        connection.close()
    assert "--train_file" in lines[-1]
    assert seconds < 30
    assert attempts <= 2


def test_several_addresses_are_given_up_together(monkeypatch):
    """The time is that of the question, however many addresses the name has, or however slow its lookup is."""
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **options: time.sleep(5))
    monkeypatch.setattr("gpt2_hf.runtime.hub._PROBE_SECONDS", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    begin = time.monotonic()
    assert not ensure_hub_or_offline.__wrapped__()
    assert time.monotonic() - begin < 4 and constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("reason", "answered"),
    [
        (ssl.SSLCertVerificationError(1, "self-signed certificate in certificate chain"), True),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), False),
        (TimeoutError("timed out"), False),
        (http.client.BadStatusLine("SSH-2.0"), False),
    ],
)
def test_a_certificate_that_cannot_be_verified_is_an_answer(monkeypatch, reason, answered):
    """Behind a proxy with certificates of its own the hub is there; its own client may know them."""

    def refuse(*args, **options):
        raise reason if isinstance(reason, http.client.HTTPException) else urllib.error.URLError(reason)

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    assert ensure_hub_or_offline.__wrapped__() is answered
    assert constants.HF_HUB_OFFLINE is datasets.config.HF_HUB_OFFLINE is not answered


@pytest.mark.parametrize(
    ("name", "local", "hub"),
    [
        ("Salesforce/wikitext", False, True),
        ("gpt2", False, True),
        ("./data", True, False),
        ("../data", True, False),
        ("~/data", True, False),
        ("/data", True, False),
        ("runs\\book", True, False),
    ],
)
def test_kinds_of_names(name, local, hub):
    """A name with the marks of a path is never looked up at the hub."""
    assert is_local_path(name) is local
    assert is_hub_id(name) is hub


def test_existing_folder_is_not_a_hub_id(tmp_path, monkeypatch):
    """A folder that is there wins over a hub id of the same name."""
    (tmp_path / "owner" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("owner/data")


class Repository:
    """What the hub's own command line asks of the hub; keeps the paths that it uploads, and the revision."""

    def __init__(self):
        self.uploaded = set()

    def create_repo(self, repo_id, **options):
        return SimpleNamespace(repo_id=repo_id)

    def repo_info(self, **options):
        pass

    def upload_folder(self, repo_id, folder_path, path_in_repo, allow_patterns, ignore_patterns, revision, **options):
        names = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        kept = filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        self.uploaded |= {(repo_id, revision, os.path.normpath(f"{path_in_repo}/{name}")) for name in kept}


@pytest.mark.parametrize("revision", [None, "second"])
@pytest.mark.parametrize("refused", ["upload_folder", "create_commit"])
def test_the_command_of_a_refused_upload_uploads_what_is_missing(tmp_path, monkeypatch, refused, revision):
    """Given to the hub's command line: the model without what must stay here, and all event files, at their places."""
    for name in ("best_model/config.json", "best_model/secret.json", "runs/a/notes.txt"):
        (tmp_path / "my run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my run" / name).write_text("{}")
    names = ["runs/a/events.tfevents.1.gpt2_hf", "runs/a/events.tfevents.2.gpt2_hf", "runs/a/validation/e.tfevents.1"]
    events = {name: tmp_path / "my run" / name for name in names}
    for path in events.values():
        path.parent.mkdir(exist_ok=True)
        path.write_text("")

    def refuse(**options):
        raise OSError("403 Forbidden")

    monkeypatch.setattr(hub, "upload_folder", lambda **options: SimpleNamespace(commit_url="https://hub/commit"))
    monkeypatch.setattr(hub, "create_branch", lambda *args, **options: None)
    monkeypatch.setattr(hub, refused, refuse)
    folder = tmp_path / "my run" / "best_model"
    with pytest.raises(SaveError, match=r"not uploaded \(403 Forbidden\); try again with: hf upload ") as raised:
        upload_model(folder, "someone/tiny", revision=revision, left_out=["secret.json"], further_files=events)
    repository = Repository()
    monkeypatch.setattr(cli_upload, "get_hf_api", lambda token: repository)
    for command in str(raised.value).partition("try again with: ")[2].split(" && "):
        app(shlex.split(command)[1:], standalone_mode=False)
    missing = {*names, *(["config.json"] if refused == "upload_folder" else [])}
    assert repository.uploaded == {("someone/tiny", revision, name) for name in missing}
    assert ("the files beside the model are not uploaded" in str(raised.value)) == (refused == "create_commit")
