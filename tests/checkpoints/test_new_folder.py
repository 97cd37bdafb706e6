"""A folder that a command makes is complete or absent, also where an empty one was there."""

import pytest

from gpt2_hf.checkpoints.new_folder import require_new_folder, staged_folder
from gpt2_hf.errors import UserError


def test_an_empty_folder_is_filled_after_a_kill(tmp_path):
    """What the killed process left in it is of no use to anybody; what is somebody's is refused."""
    left = tmp_path / "out" / "tmp-files"
    with pytest.raises(KeyError), staged_folder(make(left.parent)):
        (left / "model.safetensors").write_text("half")
        left.rename(tmp_path / "left")  # a process that is killed takes nothing away
        raise KeyError
    (tmp_path / "left").rename(left)
    with staged_folder(require_new_folder(str(left.parent))) as staging:
        (staging / "config.json").write_text("{}")
    assert [path.name for path in left.parent.iterdir()] == ["config.json"]
    (make(tmp_path / "other" / "tmp-files") / "mine.txt").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        require_new_folder(str(tmp_path / "other"))


def make(folder):
    """The folder, new and empty."""
    folder.mkdir(parents=True)
    return folder
