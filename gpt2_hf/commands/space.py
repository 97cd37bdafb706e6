"""A folder that is a Hugging Face Space: the page of `demo`, the package, and the models.

In: models. Out: `app.py`, `requirements.txt`, `README.md`, `gpt2_hf/`, and a folder for each model that is no model of
the hub. The package comes along because a Space installs from PyPI alone.
"""

import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import SpaceCardData
from packaging.requirements import Requirement

from ..checkpoints.new_folder import staged_folder
from ..errors import UserError
from .same_model import save_tokenizer

if TYPE_CHECKING:
    from .demo import DemoModel

_PACKAGE = Path(__file__).resolve().parent.parent
_APP = '''"""Write with a model, and see what surprises it."""

from gpt2_hf.commands.demo import serve

if __name__ == "__main__":
    serve({paths!r})
'''


def write_space(models: Sequence["DemoModel"], target: Path) -> None:
    """Write the Space, complete or not at all.

    Raises:
        UserError: if somebody else's folder has the name under which this one is filled, or the versions of the
            installed libraries cannot be found.
    """
    requirements = _requirements()
    with staged_folder(target, "--space_dir") as staging:
        paths = [_model_path(one, staging, f"model-{i}" if len(models) > 1 else "model") for i, one in
                 enumerate(models, 1)]  # fmt: skip
        (staging / "app.py").write_text(_APP.format(paths=paths), encoding="utf-8")
        (staging / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
        (staging / "README.md").write_text(_card(models, paths), encoding="utf-8")
        shutil.copytree(_PACKAGE, staging / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def _model_path(one: "DemoModel", staging: Path, name: str) -> str:
    """What `app.py` loads: the hub id, or a folder of the Space, which is written."""
    if not Path(one.source).is_dir():
        return one.source
    one.model.save_pretrained(staging / name)
    save_tokenizer(one.tokenizer, staging / name, one.model.config.n_positions)
    return f"./{name}"


def _requirements() -> list[str]:
    """What the package needs, at the versions that are installed here."""
    try:
        needed = [Requirement(line) for line in metadata.requires("gpt2_hf") or []]
        names = [one.name for one in needed if one.marker is None]
        return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]  # no +cpu: PyPI has none
    except metadata.PackageNotFoundError as error:
        raise UserError(f"--space_dir: {error.name} is not installed; pip install 'gpt2_hf[demo]'") from error


def _card(models: Sequence["DemoModel"], paths: Sequence[str]) -> str:
    """README.md, whose header tells the hub how to run the Space."""
    data = SpaceCardData(
        title="Write with GPT-2",
        emoji="✍️",
        sdk="gradio",
        sdk_version=metadata.version("gradio"),
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        models=[path for path in paths if not path.startswith("./")] or None,
    )
    names = ", ".join(f"{one.model.num_parameters() / 1e6:.1f}M parameters" for one in models)
    return (
        f"---\n{data.to_yaml().strip()}\n---\n\n# Write with GPT-2\n\nA model trained with gpt2_hf ({names}). "
        "`python app.py` serves the page on this machine. `gpt2_hf/` is the program, under the Apache-2.0 licence.\n"
    )
