"""The image cannot be built here; every path and version in its recipe can be checked."""

import re
import shlex

from .conftest import REPOSITORY

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
    assert instructions("USER") == ["trainer"]


def test_shell_package_has_the_folders_of_the_real_one():
    """The dependency layer's empty shell lists the same packages as pyproject.toml."""
    import tomllib

    packages = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    (layer,) = [command for command in instructions("RUN") if "gpt2_hf/__init__.py" in command]
    for package in packages:
        assert package.replace(".", "/") in layer
