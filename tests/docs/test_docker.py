"""What can be checked of the image without building it: paths, versions, signals. Built and run: test_container."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile

import psutil
import pytest
import yaml

from ..conftest import REPOSITORY, python
from ..faults import harness

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")


def instructions(name):
    """The arguments of each instruction of this name, continuation lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", joined, flags=re.MULTILINE)


def test_base_image_has_the_tested_torch():
    """The torch in the base image's tag is the one in constraints.txt."""
    (pinned,) = re.findall(r"^torch==(.+)$", (REPOSITORY / "constraints.txt").read_text(), flags=re.MULTILINE)
    (base,) = re.findall(r"^ARG BASE=pytorch/pytorch:([\d.]+)-cuda", DOCKERFILE, flags=re.MULTILINE)
    assert base == pinned


def test_everything_copied_exists_and_is_let_through():
    """Each source of COPY is in the repository and not kept out by .dockerignore."""
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for arguments in instructions("COPY"):
        *sources, _ = shlex.split(arguments)
        for source in sources:
            assert (REPOSITORY / source).exists(), source
            assert source.removeprefix("./") in allowed, source


def test_entry_point_is_the_main_job_as_an_ordinary_user():
    """Exec form, so that the trainer is PID 1 and gets SIGTERM; and not root."""
    assert instructions("ENTRYPOINT") == ['["python", "run_clm.py"]']
    assert instructions("CMD") == ['["--config", "training_args/base.json"]']
    assert instructions("USER") == ["10001"]


def test_home_is_a_folder_that_every_user_may_write_to():
    """Libraries keep caches in HOME; `--user 1000:1000` has no home of its own."""
    (variables,) = instructions("ENV")
    home = dict(pair.split("=", 1) for pair in variables.split())["HOME"]
    (line,) = [line for line in instructions("RUN") if "chmod -R a+rwX" in line]
    open_to_all = line.split("chmod -R a+rwX ")[1].split()
    assert home in [os.path.join("/work", folder) for folder in open_to_all]


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    """An editable install would not notice a subpackage that is left out."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path / "source"
    shutil.copytree(REPOSITORY / "gpt2_hf", copy / "gpt2_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    built = python(code, cwd=copy, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert built.stdout.splitlines()[-1] == wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name for name in names if ".dist-info/" not in name}
    package = REPOSITORY / "gpt2_hf"
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert packed == {path.relative_to(REPOSITORY).as_posix() for path in files}


def test_compose_runs_the_image_with_tensorboard_beside_it():
    """Both services see the same checkpoints; memory, GPU and time to save are as the README tells for docker run."""
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    train, board = services["train"], services["tensorboard"]
    # No registry has this image, and a stranger's of this name is not wanted.
    assert train["build"] == "." and board["depends_on"] == ["train"]
    assert all((service["image"], service["pull_policy"]) == ("gpt2_hf", "never") for service in services.values())
    assert train["user"] == board["user"]  # with umask 077 nobody else may read the checkpoints
    assert "./checkpoints:/work/checkpoints" in train["volumes"]
    assert "./checkpoints:/work/checkpoints:ro" in board["volumes"]
    assert board["entrypoint"][board["entrypoint"].index("--logdir") + 1] == "/work/checkpoints"
    assert train["shm_size"] == "2gb" and train["stop_grace_period"] == "2m"
    assert (REPOSITORY / train["command"][1]).is_file()


def _can_be_first() -> bool:
    command = ["unshare", "--pid", "--fork", "true"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


needs_namespaces = pytest.mark.skipif(not _can_be_first(), reason="process namespaces are not allowed here")


@needs_namespaces
def test_age_of_the_first_process():
    """The time budget counts from the start of this process, not from that of the machine's first."""
    code = "from gpt2_hf.runtime.stopwatch import process_age; print(process_age())"
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", code]
    age = float(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout)
    assert 0 < age < 60


@pytest.mark.distributed
@needs_namespaces
def test_sigterm_reaches_the_trainer_as_first_process(tiny_options, tmp_path, popen):
    """PID 1 of a container ignores what it has no handler for; the entry point saves and exits with 75."""
    (entry_point,) = instructions("ENTRYPOINT")
    assert json.loads(entry_point)[0] == "python"
    options = ["--max_steps", "100000", "--max_epochs", "100000", "--eval_every", "100000", "--save_every", "100000"]
    command = ["unshare", "--pid", "--fork", sys.executable, *json.loads(entry_point)[1:], *tiny_options, *options]
    with open(tmp_path / "log", "w") as log:
        container = popen(
            [*command, "--checkpoint_dir", str(tmp_path / "run")],
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    harness.wait_for(tmp_path / "log", "step 10/", 240, container)
    (trainer,) = psutil.Process(container.pid).children()
    trainer.send_signal(signal.SIGTERM)
    assert container.wait(timeout=200) == 75, (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the image is Linux")
def test_every_run_line_works_in_a_clean_environment(tmp_path):
    """COPY and RUN in their order, in a new virtual environment; dependencies, users and /data are left to Docker."""
    root, tools = tmp_path / "work", tmp_path / "tools"
    root.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    tools.mkdir()
    (tools / "useradd").write_text("#!/bin/sh\n")
    (tools / "useradd").chmod(0o755)
    path = os.pathsep.join([str(tools), str(tmp_path / "venv" / "bin"), os.environ["PATH"]])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": path, "PIP_NO_DEPS": "1"}
    for name, arguments in re.findall(r"^(COPY|RUN) (.*)$", DOCKERFILE.replace("\\\n", " "), flags=re.MULTILINE):
        if name == "RUN":
            line = arguments.replace(" /data", f" {tmp_path / 'data'}")
            subprocess.run(["sh", "-ec", line], cwd=root, env=environment, check=True)
            continue
        *sources, target = shlex.split(arguments)
        folder = root / target
        for source in sources:
            if (REPOSITORY / source).is_dir():
                shutil.copytree(REPOSITORY / source, folder, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                folder.mkdir(exist_ok=True)
                shutil.copy(REPOSITORY / source, folder)
    where = ["python", "-c", "import importlib.util as u; print(u.find_spec('gpt2_hf').origin)"]
    origin = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "venv") in origin
    assert (root / "checkpoints").is_dir() and (root / "run_clm.py").is_file()
    assert {path.name for path in root.iterdir()} == {".cache", "checkpoints", "run_clm.py", "training_args"}
