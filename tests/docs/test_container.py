"""The image, built and run: which package is in it, how it takes signals, and that any user may run it.

    tests/docs/make_container_base.sh localhost/gpt2_hf_base
    GPT2_HF_CONTAINER_BASE=localhost/gpt2_hf_base pytest -m container -n 0

With Debian's buildah and podman, as root, in about three minutes on two cores. GPT2_HF_CONTAINER_BUILD holds further
options of `buildah bud`, such as --volume for a pip configuration. Any base with Python, pip and the tested torch will
do, also the one that the Dockerfile names.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time

import pytest

from gpt2_hf import __version__
from gpt2_hf.checkpoints import folders

from ..conftest import REPOSITORY, TINY_MODEL, read_json

BASE = os.environ.get("GPT2_HF_CONTAINER_BASE")
IMAGE = f"localhost/gpt2_hf_test:{os.getpid()}"

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(not BASE, reason="GPT2_HF_CONTAINER_BASE names no base image"),
    pytest.mark.skipif(not (shutil.which("buildah") and shutil.which("podman")), reason="no buildah and podman here"),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes folders for others"),
]

RUNTIME = ["--runtime", "runc"] if shutil.which("runc") else []
# No network: the embedded text and GPT-2's vocabulary are in the image.
RUN = [
    "podman",
    *RUNTIME,
    "run",
    "--rm",
    "--network",
    "none",
    "--ulimit",
    "nofile=4096:4096",
    "--ulimit",
    "nproc=8192:8192",
]
OPTIONS = [
    *("--dataset_name", "python-docs", *TINY_MODEL, "--use_cpu", "--warmup_steps", "1", "--logging_steps", "5"),
    *("--max_train_samples", "400", "--max_eval_samples", "20", "--max_epochs", "100000"),
    *("--eval_every", "100000", "--save_every", "100000", "--save_strategy", "steps", "--eval_strategy", "steps"),
]


@pytest.fixture(scope="module", autouse=True)
def image(request):
    """The image of the Dockerfile as it stands, on another base."""
    if "container" not in request.config.getoption("-m"):
        pytest.skip("takes minutes; run with -m container -n 0")
    options = shlex.split(os.environ.get("GPT2_HF_CONTAINER_BUILD", ""))
    build = ["buildah", "bud", "--isolation", "chroot", "--build-arg", f"BASE={BASE}", *options, "--tag", IMAGE, "."]
    built = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    yield
    subprocess.run(["podman", "rmi", "--force", IMAGE], capture_output=True, check=True)


@pytest.fixture
def mounted(tmp_path):
    """A function that makes a folder of a user, to be mounted."""

    def make(uid):
        folder = tmp_path / str(uid)
        folder.mkdir()
        os.chown(folder, uid, uid)
        return folder

    return make


def run(*options, arguments=(), entrypoint=None):
    """The end of a container, with what it wrote."""
    command = [*RUN, *options, *(["--entrypoint", entrypoint] if entrypoint else []), IMAGE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_installed_package_is_the_package():
    """From any folder the same files as here, none of them a second time, and nothing left of the build."""
    version = run("--workdir", "/data", entrypoint="gpt2-hf", arguments=["--version"])
    assert (version.returncode, version.stdout, version.stderr) == (0, f"{__version__}\n", "")
    code = (
        "import gpt2_hf, hashlib, json, os, pathlib;"
        "package = pathlib.Path(gpt2_hf.__file__).parent;"
        "files = {str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest()"
        " for path in package.rglob('*') if path.is_file() and path.suffix != '.pyc'};"
        "print(json.dumps([str(package), files, sorted(os.listdir('/work'))]))"
    )
    package = REPOSITORY / "gpt2_hf"
    sources = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    expected = {str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}
    for folder in ("/", "/work"):
        answer = run("--workdir", folder, entrypoint="python", arguments=["-c", code])
        where, files, work = json.loads(answer.stdout)
        assert files == expected
        assert not where.startswith("/work/")
        assert work == [".cache", "checkpoints", "run_clm.py", "training_args"]


def test_a_container_that_is_stopped_saves_and_goes_on(mounted, tmp_path):
    """`podman stop` sends SIGTERM to the first process: 75 and a whole checkpoint, from which the next one goes on."""
    folder, name = mounted(10001), f"gpt2_hf_test_{os.getpid()}"
    volume = ["--volume", f"{folder}:/work/checkpoints"]
    with open(tmp_path / "log", "w") as log:
        command = [*RUN, *volume, "--name", name, IMAGE, *OPTIONS, "--max_steps", "100000"]
        container = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 200
        while "step 10/" not in (tmp_path / "log").read_text():
            assert container.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        subprocess.run(["podman", "stop", "--time", "120", name], capture_output=True, check=True)
        assert container.wait(timeout=60) == 75, (tmp_path / "log").read_text()
    newest, passed_over = folders.newest_valid(folder)
    assert newest is not None and passed_over == []
    steps = folders.step_of(newest)

    again = run(*volume, arguments=[*OPTIONS, "--max_steps", str(steps + 3), "--resume_from", "latest"])
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resuming from checkpoints/checkpoint-{steps}" in again.stdout
    assert read_json(folder / "trainer_state.json")["global_step"] == steps + 3


def test_any_user_may_run_it(mounted):
    """One that the image does not know trains into a folder of theirs; no library complains about its home."""
    folder = mounted(1000)
    options = ["--user", "1000:1000", "--volume", f"{folder}:/runs"]
    trained = run(*options, arguments=[*OPTIONS, "--max_steps", "3", "--checkpoint_dir", "/runs/tiny"])
    assert (trained.returncode, trained.stderr) == (0, ""), trained.stdout
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.stat().st_uid for path in files} == {1000}
    assert (folder / "tiny" / "curves.png").is_file()

    arguments = ["generate", "--model_path", "tiny/best_model", "--prompt", "The", "--max_new_tokens", "4"]
    written = run(*options, "--workdir", "/runs", entrypoint="gpt2-hf", arguments=arguments)
    assert (written.returncode, written.stderr) == (0, "")
    assert re.search(r"^The", written.stdout, flags=re.MULTILINE)
