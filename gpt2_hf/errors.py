"""The errors that the command turns into one line and an exit code instead of a traceback."""

import codecs
import os

EXIT_OK = 0
EXIT_FAILURE = 1  # a bug, or another process of the run is gone
EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: run the same command with --resume_from latest to continue
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports after Ctrl-C
EXIT_NO_READER = 141  # 128 + SIGPIPE, what a shell reports of other programs before `| head`


def printable(text: str) -> str:
    """The text as one line that can be printed anywhere: other characters are escaped as in Python's strings.

    File names may hold any of them: line ends, and bytes that are no characters (PEP 383).

    >>> print(printable("a\\nb"))
    a\\nb
    """
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode("ascii") for mark in text)


def first_line(error: BaseException) -> str:
    """What an error of a library says first; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def in_one_line(error: BaseException) -> str:
    """All that an error of a library says, on one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def has_utf16_mark(raw: bytes) -> bool:
    """Whether a file that begins so says that it is UTF-16."""
    return raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def to_utf8(raw: bytes) -> str:
    """How to convert a file that is not UTF-8, for the end of an error.

    Args:
        raw: the beginning of the file, where UTF-16 has a byte order mark; empty if it is not known.

    >>> to_utf8("a".encode("utf-16"))
    'convert it with iconv -f UTF-16 -t UTF-8 FILE > NEW'
    """
    if has_utf16_mark(raw):
        return "convert it with iconv -f UTF-16 -t UTF-8 FILE > NEW"
    return "convert it with iconv -f LATIN1 -t UTF-8 FILE > NEW (LATIN1 or what it is in)"


class _OneLine(Exception):
    """An error whose message is a line, whatever names of files are in it."""

    def __str__(self) -> str:
        return printable(super().__str__())


class UserError(_OneLine, ValueError):
    """The user's input is wrong; the message is one line that names the remedy."""

    exit_code = EXIT_USER_ERROR


class SaveError(_OneLine, OSError):
    """A checkpoint could not be written; earlier ones are untouched. What the user can fix, hence the exit code."""

    exit_code = EXIT_USER_ERROR


class FolderLostError(SaveError):
    """The run's folder was moved, or another process has taken it; nothing more may be written there."""

    def __init__(self, folder: str | os.PathLike[str] | None):
        if os.path.isdir(folder or ""):
            super().__init__(
                f"another process has taken {folder} while this one stood still, or another folder is in its place; "
                "this run stops and saves nothing more. Its checkpoints are intact: see which process uses the "
                "folder, or go on elsewhere with --resume_from"
            )
        else:
            super().__init__(
                f"{folder} is gone (moved or deleted); this run stops and saves nothing more. Its checkpoints are "
                "where the folder is now: go on there with --checkpoint_dir and --resume_from latest"
            )


class TrainingDivergedError(RuntimeError):
    """A loss or gradient became non-finite; the weights were not touched by it."""

    exit_code = EXIT_DIVERGED

    def __init__(self, message: str, step: int = 0):
        super().__init__(message)
        self.step = step
