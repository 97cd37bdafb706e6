"""Commands that are printed can be typed in the shell of the system."""

from types import SimpleNamespace

import pytest

from gpt2_hf.runtime import command_lines


@pytest.mark.parametrize(
    ("system", "word", "typed"),
    [
        ("posix", "runs/my book/a.json", "'runs/my book/a.json'"),
        ("posix", "it's", "'it'\"'\"'s'"),
        ("nt", r"runs\book\a.json", r"runs\book\a.json"),
        ("nt", r"C:\my runs\a.json", r'"C:\my runs\a.json"'),
    ],
)
def test_words_are_quoted_for_the_shell_of_the_system(monkeypatch, system, word, typed):
    """Windows knows no single quotes, and its backslashes need none."""
    monkeypatch.setattr(command_lines, "os", SimpleNamespace(name=system))
    assert command_lines.as_typed("hf", word) == f"hf {typed}"
