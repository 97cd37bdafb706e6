"""--train_file, --validation_file and --test_file: paths and globs to sources, and how each file is to be read."""

import dataclasses
import functools
import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ...checkpoints import written
from ...errors import UserError, printable
from ...options.arguments import DataArguments
from ..readers import DocumentUnit, Format, TextFile, columns_of, headers_of, text_file
from .columns import find_text_column, unit_of_rows, wanted_columns
from .source import SPLITS, FileSource, RowSource, Source

# Files of a note are named up to this number.
_NAMES_SHOWN = 3


def sources_of_files(args: DataArguments) -> dict[str, Source]:
    """train_file, validation_file and test_file, each a path or a glob."""
    sources: dict[str, FileSource] = {}
    notes: list[str] = []
    for split in SPLITS:
        pattern = getattr(args, f"{split}_file")
        if pattern is not None:
            option = f"--{split}_file"
            paths, left_out = _matches(pattern, option)
            sources[split] = file_source(split, [text_file(path, option) for path in paths], args)
            if left_out:
                names = first_names(left_out)
                notes.append(printable(f"NOT READ: {len(left_out):,} that {option} matches and a run wrote ({names})"))
    check_columns(sources.values(), args)
    notes += (_shared_with_training(split, sources) for split in SPLITS[1:])
    return with_note(dict(sources), "; ".join(filter(None, notes)))


def _shared_with_training(split: str, sources: dict[str, FileSource]) -> str:
    """For the user: files that are both trained on and scored; "" if there are none."""
    if split not in sources or "train" not in sources:
        return ""
    return contamination(sources[split].paths, sources["train"].paths, f"files of --{split}_file", f"{split} loss")


def contamination(scored: Iterable[str], trained: Iterable[str], what: str, loss: str) -> str:
    """What files that are scored and trained on mean for a loss; "" if there are none."""
    known = set(map(os.path.realpath, trained))
    shared = [path for path in scored if os.path.realpath(path) in known]
    if not shared:
        return ""
    names = first_names([os.path.basename(path) for path in shared])
    verb = "is" if len(shared) == 1 else "are"
    consequence = f"the {loss} is contaminated and will look too low"
    return printable(f"{len(shared)} of the {what} {verb} trained on too ({names}): {consequence}")


def with_notes_of_shared_files(texts: Mapping[str, dict[str, Source]]) -> dict[str, dict[str, Source]]:
    """The texts of a mix; the training text of each also says which files of the others it has that are scored."""
    return {
        name: with_note(sources, "; ".join(filter(None, _scored_in_others(name, texts))))
        for name, sources in texts.items()
    }


def _scored_in_others(name: str, texts: Mapping[str, dict[str, Source]]) -> Iterator[str]:
    trained = texts[name].get("train")
    for other, sources in texts.items():
        for split in SPLITS[1:]:
            is_cut = split == "validation" and split not in sources
            scored = sources.get("train" if is_cut else split)
            if other == name or not isinstance(scored, FileSource) or not isinstance(trained, FileSource):
                continue
            if is_cut and "validation" not in texts[name] and scored.files == trained.files:
                continue  # the same documents are set aside from both
            of_a_part = ", of which a part is set aside," if is_cut else ""
            what = f"{'train' if is_cut else split} files of {other}{of_a_part}"
            yield contamination(scored.paths, trained.paths, what, f"{split} loss of {other}")


def with_note(sources: dict[str, Source], note: str) -> dict[str, Source]:
    """The sources, one of which tells the user something more; it is said once, not of each split."""
    if not note or not sources:
        return sources
    first = "train" if "train" in sources else next(iter(sources))
    source = sources[first]
    assert isinstance(source, FileSource | RowSource)
    noted = dataclasses.replace(source, note="; ".join(filter(None, [source.note, note])))
    return {**sources, first: noted}


def first_names(names: Sequence[str]) -> str:
    """The first few names of files, for a note."""
    return ", ".join([*names[:_NAMES_SHOWN], *(["..."] if len(names) > _NAMES_SHOWN else [])])


def file_source(split: str, files: list[TextFile], args: DataArguments) -> FileSource:
    """A source of files, each with what a document of it is and which column is its text."""
    filled = [found for file in files if not file.is_empty and (found := _resolved(file, args)) is not None]
    if not filled:
        raise UserError(f"{files[0].option}: {files[0].path} is empty; give a file with text")
    return FileSource(split, tuple(filled))


def check_columns(sources: Iterable[Source], args: DataArguments) -> None:
    """Refuse what is said of rows and columns if no file of any split has them."""
    files = [file for source in sources if isinstance(source, FileSource) for file in source.files]
    if not files or any(file.has_columns for file in files):
        return
    if args.text_column not in (None, "text"):
        raise UserError(f"--text_column: {files[0].path} is plain text and has no columns; leave the option out")
    if args.document_unit == DocumentUnit.ROW:
        raise UserError(
            f"--document_unit row: {files[0].path} is plain text and has no rows; use line, paragraph or file, or "
            "leave the option out"
        )


def _resolved(file: TextFile, args: DataArguments) -> TextFile | None:
    """Settle what a document of the file is, and which column holds it; `None` if the file has no rows."""
    if file.has_columns:
        file = dataclasses.replace(file, unit=unit_of_rows(args, file.path))
        if file.format in (Format.CSV, Format.TSV):
            return _with_header(file, args)
        columns = columns_of(file)
        return dataclasses.replace(file, column=find_text_column(columns, args, file.path)) if columns else None
    default = DocumentUnit.FILE if file.format is Format.MARKDOWN else DocumentUnit.LINE
    unit = default if args.document_unit in (None, DocumentUnit.ROW) else DocumentUnit(args.document_unit)
    return dataclasses.replace(file, unit=unit)


def _with_header(file: TextFile, args: DataArguments) -> TextFile | None:
    """Settle what is between the fields of a CSV file: what makes its header name the column of the text."""
    headers = headers_of(file)
    if not any(headers.values()):
        return None
    wanted = wanted_columns(args)
    several = {mark: fields for mark, fields in headers.items() if len(fields) > 1}
    found = [mark for mark, fields in several.items() if any(name in fields for name in wanted)]
    if len(found) > 1:
        raise UserError(
            f"{file.option}: the header of {file.path} can be read in {len(found)} ways, with the delimiters "
            f"{' and '.join(map(repr, found))}; quote its names, or write the file again as jsonl"
        )
    if found:
        delimiter = found[0]
    elif any(fields[0] in wanted for fields in headers.values() if len(fields) == 1):
        delimiter = next(mark for mark, fields in headers.items() if len(fields) == 1)
    else:  # the column is not there: say what there is
        delimiter = max(headers, key=lambda mark: len(headers[mark]))
    columns = headers[delimiter]
    if args.text_column is None and len(columns) == 1 and columns[0] not in wanted:
        raise UserError(
            f"--text_column: {file.path} has a single column, which its first line calls {columns[0]!r}; give "
            "--text_column with that name if the line is a header, else write one above it"
        )
    return dataclasses.replace(file, delimiter=delimiter, column=find_text_column(columns, args, file.path))


def _matches(pattern: str, option: str) -> tuple[list[str], list[str]]:
    """The files of a path or pattern, and those that a pattern matches because a run has put them there."""
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        raise UserError(
            f"{option}: {pattern} is a folder; give --dataset_name {pattern}, or a quoted glob such as "
            f"'{os.path.join(pattern, '**', '*.txt')}'"
        )
    paths = sorted(glob.glob(_without_names(expanded, option), recursive=True))
    # a link within the folder, which ** follows, is no second text
    files = {os.path.realpath(path): path for path in reversed(paths) if os.path.isfile(path)}
    if not files:
        raise UserError(f"{option}: {_why_no_file(pattern, expanded)}")
    found = sorted(files.values())
    left_out = [] if os.path.lexists(expanded) else _written_by_runs(found)  # a name is no pattern
    if len(left_out) == len(found):
        raise UserError(f"{option}: {pattern} matches only files that runs wrote, such as {found[0]}; give its path")
    return [path for path in found if path not in left_out], left_out


def _written_by_runs(paths: Iterable[str]) -> list[str]:
    """Those that a run wrote, in its folder or that of its best model: model cards, results."""
    holds_record = functools.cache(written.holds_record)
    found = []
    for path in paths:
        place = Path(os.path.abspath(path))
        for folder in (place.parent, place.parent.parent):
            if holds_record(folder) and written.is_own(folder, place.relative_to(folder).as_posix()):
                found.append(path)
                break
    return found


def _why_no_file(pattern: str, expanded: str) -> str:
    if "://" in pattern:
        return (
            f"{pattern} is an address; download it and give the file, or name a dataset of the hub with --dataset_name"
        )
    if os.path.exists(expanded):  # a pipe or a device
        return f"{pattern} is no regular file, and a text is read more than once; write it to a file first"
    return f"no file matches {pattern!r}; give a path or a quoted glob"


def _without_names(pattern: str, option: str) -> str:
    """The pattern with those parts escaped that are names as they stand: a folder may be called `data [v1]`."""
    path, escaped = "", ""
    for part in _components(pattern):
        here = path + part
        if not os.path.lexists(here):
            return escaped + pattern[len(path) :]
        literal = escaped + glob.escape(part)
        others = set(glob.glob(escaped + part)) - {here} if glob.has_magic(part) else set()
        if others:
            raise UserError(
                f"{option}: {pattern!r} begins with the name {here!r}, which is also a pattern and matches "
                f"{min(others)!r}; for the name write {literal + pattern[len(here) :]!r}, or rename one of them"
            )
        path, escaped = here, literal
    return escaped


def _components(pattern: str) -> list[str]:
    """The names in a path, each with the separator after it."""
    separators = tuple(mark for mark in (os.sep, os.altsep) if mark)
    components = [""]
    for mark in pattern:
        components[-1] += mark
        if mark in separators:
            components.append("")
    return [component for component in components if component]
