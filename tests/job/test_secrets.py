"""No token, key or credential reaches a file or a stream, whichever way it comes in."""

import dataclasses
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainingArguments

from gpt2_hf.__main__ import main
from gpt2_hf.checkpoints import manifest
from gpt2_hf.checkpoints.event_files import EVENT_FILE_SUFFIX
from gpt2_hf.job.results import has_secrets
from gpt2_hf.options.secrets import hide, is_secret, without_secrets
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments, with_own_fields

from ..conftest import read_json
from .fake_hub import Hub

MARK = "pl4nted5ecret"
# What transformers masks in its own records: by its rule, the names that end in _token.
MASKED = [
    field.name
    for field in dataclasses.fields(GPT2HFTrainingArguments)
    if field.name in TrainingArguments.__dataclass_fields__ and field.name.endswith("_token")
]
ENVIRONMENT = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "COMET_API_KEY")


def test_the_rule_is_transformers_own_and_more():
    """Every option that transformers masks, and names of keys and passwords; no option of another kind."""
    assert MASKED and all(map(is_secret, [*MASKED, *ENVIRONMENT, "apikey", "my-secret"]))
    others = {field.name for field in dataclasses.fields(GPT2HFTrainingArguments)} - set(MASKED)
    assert not any(map(is_secret, others))


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{MARK}@host/path and more",
        f"https://{MARK}@host",
        f"https://user:{MARK}@pass@host/x",
        f"https://host/x?api_key={MARK}&y=1",
        f"https://bucket/x?X-Amz-Signature={MARK}",
        f"run_clm.py --hub_token {MARK} --seed 1",
        f"run_clm.py --hub-token={MARK}",
        f'run_clm.py --lr_scheduler_kwargs \'{{"api_key": "{MARK}"}}\'',
        f"hf_{MARK * 3}",
    ],
)
def test_secrets_are_found_by_their_form(text):
    """In addresses, queries and commands; what is around them stays."""
    assert MARK not in hide(text) and "***" in hide(text)
    assert hide(json.dumps([hide(text)])) == json.dumps([hide(text)])
    assert MARK not in str(without_secrets({"a": [text], "b": {"hub_token": MARK, "c": text}}))


def test_ordinary_texts_stay_as_they_are():
    """Addresses without credentials, mail addresses, options that merely sound alike, texts of a mix."""
    mix = {"train_mix": {"secret": {"train_file": "a.txt", "weight": 1.0}, "low_key": {"train_file": "b.txt"}}}
    assert without_secrets(mix) == mix
    for text in ("https://huggingface.co/openai-community/gpt2", "a@b.c", "--sample_tokens 0", "key=1", "a/b@main"):
        assert hide(text) == text


@dataclasses.dataclass
class TheirArguments(TrainingArguments):
    """A subclass of the user's own."""


@dataclasses.dataclass
class FurtherArguments(GPT2HFTrainingArguments):
    """A subclass of this package's arguments; `@dataclass` would make a `__repr__` that shows all."""

    further: int = 0


class ShownByThem(GPT2HFTrainingArguments):
    """A subclass with a text of its own, which its own subclasses have too."""

    def __repr__(self):
        return "theirs"


@dataclasses.dataclass
class ShownByThemToo(ShownByThem):
    """One of these."""


def test_arguments_may_be_shown_in_another_way(tmp_path):
    """By a subclass."""
    for kind in (ShownByThem, ShownByThemToo):
        assert repr(kind(str(tmp_path), use_cpu=True)) == "theirs"


@pytest.mark.parametrize("kind", [GPT2HFTrainingArguments, TrainingArguments, TheirArguments, FurtherArguments])
def test_arguments_are_shown_without_their_token(tmp_path, kind):
    """In a notebook or a traceback, as transformers shows its own."""
    args = with_own_fields(kind(str(tmp_path), use_cpu=True, hub_token=MARK))
    assert args.hub_token == MARK and f"seed={args.seed}" in repr(args)
    assert MARK not in repr(args) + str(args)


@pytest.fixture
def secret_environment(monkeypatch):
    """Secrets in the environment, and proxies and an endpoint with credentials."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, f"{MARK}-{name}")
    for name in ("HF_ENDPOINT", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://user:{MARK}@localhost:9")


def command_of(monkeypatch, argv):
    """Run a command whose words the process also sees as its own."""
    monkeypatch.setattr(sys, "argv", ["gpt2-hf", *argv])
    return main(argv)


def test_no_file_and_no_stream_shows_a_secret(tiny_options, tmp_path, capfd, monkeypatch, secret_environment):
    """Secrets in every option that is masked, in the environment and in addresses: train, resume, plan, report."""
    run = tmp_path / "run"
    secrets = [word for name in MASKED for word in (f"--{name}", f"{MARK}-{name}")]
    short = ["--max_steps", "2", "--sample_tokens", "0", "--checkpoint_dir", str(run)]
    command = ["train", *tiny_options, *secrets, *short]
    assert command_of(monkeypatch, command) == 0
    assert command_of(monkeypatch, [*command, "--resume_from", "latest", "--max_steps", "3"]) == 0
    assert command_of(monkeypatch, ["plan", *command[1:]]) == 0
    assert command_of(monkeypatch, ["report", str(run)]) == 0
    again = ["train", "--config", str(run / "resolved_config.json"), "--checkpoint_dir", str(tmp_path / "again")]
    assert command_of(monkeypatch, again) == 0
    address = f"https://user:{MARK}@host/text.txt"
    for wrong in (
        ["--train_file", address],
        ["--validation_file", f"{address}?token={MARK}"],
        ["--tokenizer_name", f"./{MARK}-{ENVIRONMENT[0]}"],
        ["--hub_token", "=", f"{MARK}-x"],
        ["--optim", f"{MARK}-{MASKED[0]}"],
    ):
        assert command_of(monkeypatch, [*command, *wrong, "--overwrite_output_dir"]) == 2
    assert command_of(monkeypatch, ["train", "--dataset_name", address, *secrets, *short[-2:]]) == 2
    for stream in capfd.readouterr():
        assert MARK not in stream
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20 and not [path for path in files if MARK.encode() in path.read_bytes()]
    assert "--hub_token ***" in read_json(run / "resolved_config.json")["provenance"]["command"]


def test_a_bug_shows_its_traceback_without_secrets(monkeypatch, capsys):
    """An error that nobody has expected, whose text has the token."""

    def fail(argv):
        raise KeyError(f"no access with {MARK}")

    monkeypatch.setitem(main.__globals__["_COMMANDS"], "report", fail)
    assert main(["report", "--hub_token", MARK]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "no access with ***" in err
    with pytest.raises(KeyError):
        main.__globals__["_fail"](KeyError("harmless"))


def test_a_card_of_an_earlier_version_loses_its_secrets(finished_run, tmp_path, train_tiny, capsys):
    """An old resolved_config.json that has a token: the card is written without, and a resumed run warns."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "written_files.json").unlink()
    for folder in (run, run / "checkpoint-25"):
        config = {**read_json(folder / "resolved_config.json"), "hub_token": MARK}
        (folder / "resolved_config.json").write_text(json.dumps(config))
    manifest.write(run / "checkpoint-25")
    assert main(["report", str(run)]) == 0
    assert MARK not in (run / "README.md").read_text()
    assert train_tiny(run, "--resume_from", "latest") == 0
    assert "an earlier version wrote hub_token into" in capsys.readouterr().out
    assert MARK not in (run / "resolved_config.json").read_text()


def test_the_upload_has_and_says_no_secret(train_tiny, finished_run, tmp_path, capsys, monkeypatch):
    """A config of an earlier version stays here, and what the hub answers may repeat the token."""
    assert not has_secrets(finished_run / "best_model" / "resolved_config.json")
    written = {"provenance": {"command": f"run_clm.py --hub_token {MARK}"}}
    (tmp_path / "old.json").write_text(json.dumps(written))
    assert has_secrets(tmp_path / "old.json")
    hub = Hub(monkeypatch, refusal=OSError(f"401 for http://x:{MARK}@hub with {MARK}"))
    hub.create_repo = lambda name, **options: SimpleNamespace(repo_id="someone/tiny")
    options = ("--push_to_hub", "--hub_model_id", "tiny", "--hub_token", MARK, "--max_steps", "2")
    assert train_tiny(tmp_path / "run", *options) == 2
    out, err = capsys.readouterr()
    assert MARK not in out + err and "not uploaded" in err


def test_event_files_of_an_earlier_version_stay_here(train_tiny, finished_run, tmp_path, capsys, monkeypatch):
    """It wrote the command line into them; those of a version that leaves the token out are uploaded."""
    shutil.copytree(finished_run, tmp_path / "run")
    texts = {}
    for name, token in (("1.a", MARK), ("1.b", "***")):
        texts[name] = json.dumps({"hub_token": token, "command": f"run_clm.py --hub_token {token}"})
    texts[f"2.c{EVENT_FILE_SUFFIX}"] = "ssh://git@example.org/a --api-key foo"  # the model's own words are no secret
    for name, text in texts.items():
        with SummaryWriter(tmp_path / name) as writer:
            writer.add_text("samples" if name.endswith(EVENT_FILE_SUFFIX) else "resolved_config", text)
        (written,) = (tmp_path / name).iterdir()
        shutil.move(written, tmp_path / "run" / "runs" / f"events.out.tfevents.{name}")
    hub = Hub(monkeypatch)
    assert train_tiny(tmp_path / "run", "--resume_from", "latest", "--push_to_hub", "--hub_model_id", "tiny") == 0
    assert f"runs/run/events.out.tfevents.2.c{EVENT_FILE_SUFFIX}" in hub.further_files
    assert "runs/run/events.out.tfevents.1.b" in hub.further_files and len(hub.further_files) > 1
    assert not [name for name, content in hub.further_files.items() if MARK.encode() in content]
    assert "tfevents.1.a is not uploaded: an earlier version wrote a token" in capsys.readouterr().out
