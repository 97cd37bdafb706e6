"""gpt2_hf.runtime.hub: an unreachable hub costs seconds, not minutes, and says what to do."""

import contextlib
import os
import shlex
import socket
import threading
import time
from base64 import b64encode
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import close_session, constants
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


LOAD_ALL = """
from gpt2_hf.commands.model_loading import load_weights, read_config
from gpt2_hf.commands.training_protocol import read_trained_config
from gpt2_hf.runtime.hub import ensure_hub_or_offline
from gpt2_hf import GPT2HFConfig
assert ensure_hub_or_offline()
for load in (
    lambda: load_data(DataArguments(), load_tokenizer(), 64),
    lambda: load_tokenizer("someone/model"),
    lambda: read_config("someone/model", "--model_path"),
    lambda: load_weights("someone/model", GPT2HFConfig(n_embd=4, n_head=1), None, "--model_path"),
    lambda: read_trained_config("someone/model"),
):
    try:
        load()
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


@pytest.fixture
def ask(monkeypatch):
    """Ask for the hub anew, with the client that the environment of the test gives."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_last", hub._Answer())
    close_session()
    yield ensure_hub_or_offline
    close_session()


class Answer(BaseHTTPRequestHandler):
    """An answer without content to whatever is asked; the server's `logins` has those that came with it."""

    def do_HEAD(self):
        self.server.logins.append(self.headers["Authorization"])
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *args):
        pass


class BrokenConnection(Answer):
    """An answer to the first question, that whether the hub is there; then none."""

    def do_HEAD(self):
        if not self.server.logins:
            super().do_HEAD()

    def do_GET(self):
        pass


@contextlib.contextmanager
def serving(port=0, status=200, handler=Answer):
    """A local server, as the hub, a mirror or a proxy."""
    with HTTPServer(("127.0.0.1", port), handler) as server:
        server.status, server.logins = status, []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("endpoint", ["hub.invalid", "http://hub.invalid:port", "alice:pl4nted5ecret@hub.invalid"])
def test_an_endpoint_that_is_no_address(ask, monkeypatch, endpoint):
    """HF_ENDPOINT without a scheme or with a bad port is one line, not a traceback, and says no password."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(
        UserError, match=r"HF_ENDPOINT: .*hub.invalid.* is no address; begin it with https://"
    ) as raised:
        ask()
    assert "5ecret" not in str(raised.value)


@pytest.mark.parametrize("status", [200, 302, 404, 503])
def test_a_mirror_with_a_login(ask, monkeypatch, status):
    """Its name and password in HF_ENDPOINT are sent, and any answer is one."""
    with serving(status=status) as mirror:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://alice:pl4nted5ecret@127.0.0.1:{mirror.server_port}")
        assert ask()
    assert mirror.logins == [f"Basic {b64encode(b'alice:pl4nted5ecret').decode()}"]


def test_a_hub_behind_a_proxy(ask, monkeypatch):
    """The hub is asked by its own client, which goes by ALL_PROXY too."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    with serving() as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        assert ask()


def test_connections_that_break(tmp_path):
    """A hub that is there and closes what comes after: data, tokenizer, model and record give one line each."""
    with serving(handler=BrokenConnection) as server:
        lines, errors, _ = run_without_hub(LOAD_ALL, tmp_path, f"http://127.0.0.1:{server.server_port}")
    assert len(lines) == 5 and "Traceback" not in errors
    assert all("cannot be loaded" in line or "can be loaded" in line or "could be loaded" in line for line in lines)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [("ALL_PROXY", "gopher://localhost:9", "gopher"), ("SSL_CERT_FILE", "/not/there.pem", "No such file")],
)
def test_an_environment_that_cannot_be_used(ask, monkeypatch, variable, value, reason):
    """One line that names the variable."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=rf"this environment cannot be used \(.*{reason}.*; correct .*{variable}"):
        ask()


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


def test_several_addresses_are_given_up_together(ask, monkeypatch):
    """The time is that of the question, however many addresses the name has, or however slow its lookup is."""
    monkeypatch.setattr(hub, "get_session", lambda: time.sleep(5))
    monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.1)
    begin = time.monotonic()
    assert not ask()
    assert time.monotonic() - begin < 4 and constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("datasets_offline", [False, True])
def test_a_network_that_comes_back(ask, monkeypatch, datasets_offline):
    """In one process the hub is asked again after a while, and what was set because it was away is taken back."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", datasets_offline)
    with closing(socket.create_server(("127.0.0.1", 0))) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert not ask() and constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
    with serving(port) as server:
        assert not ask() and not server.logins  # a start asks several times
        monkeypatch.setattr(hub, "_SECONDS_UNTIL_ASKED_AGAIN", 0)
        assert ask()
        assert not constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE is datasets_offline
    assert ask() and len(server.logins) == 1


def test_offline_mode_of_the_user(ask, monkeypatch):
    """HF_HUB_OFFLINE=1 is obeyed, and stays."""
    monkeypatch.setattr(hub, "_SECONDS_UNTIL_ASKED_AGAIN", 0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("the hub was asked"))
    assert not ask() and not ask() and constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.9\r\n"])
def test_what_is_no_hub(ask, monkeypatch, greeting):
    """Something at the port that closes the connection, or speaks another protocol."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def greet():
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)
                connection.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert not ask()
        thread.join()


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
