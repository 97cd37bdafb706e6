"""Where text comes from: the hub, a folder in the hub's layout, files, or the embedded corpus.

In: `DataArguments`. Out: a `Source` of documents per split. Next stage: `tokenization`, or `streaming`.

    files ─┐
           ├─► source (documents)
    named ─┘
"""

from ...options.arguments import DataArguments
from ...options.mixture import DATA_FILES
from .documents import split_document
from .files import sources_of_files, with_notes_of_shared_files
from .named import sources_of_name
from .source import SPLITS, Cursor, Documents, FileSource, RowSource, Source

__all__ = [
    "SPLITS",
    "Cursor",
    "Documents",
    "FileSource",
    "RowSource",
    "Source",
    "load_sources",
    "split_document",
    "with_notes_of_shared_files",
]


def load_sources(args: DataArguments) -> dict[str, Source]:
    """Find the text of every split that there is.

    Raises:
        UserError: if the source is missing, unreadable, empty, or has no such column.
    """
    if any(getattr(args, name) for name in DATA_FILES):
        return sources_of_files(args)
    return sources_of_name(args)
