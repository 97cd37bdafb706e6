"""Which files of a local folder belong to which split; the datasets library decides, whatever the folder is called.

The library takes the name of a folder for a pattern: brackets, asterisks and `::` in it mean something else there, and
names with bytes that are not UTF-8 cannot be hashed. Such a folder is shown to it as a copy that has only names, and
those in plain characters; what it answers is translated back.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import yaml
from datasets.data_files import FILES_TO_IGNORE, DataFilesDict, resolve_pattern, sanitize_patterns
from datasets.packaged_modules import _ALL_ALLOWED_EXTENSIONS
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

# All but what stands for itself in the patterns of the datasets library and of fsspec.
_NOT_PLAIN = re.compile(r"[^\w /.,=+@()&'#%-]")
_DESCRIPTIONS = (datasets.config.REPOCARD_FILENAME, datasets.config.REPOYAML_FILENAME)


@dataclass(frozen=True)
class PlainFolder:
    """A folder under a name that the datasets library can take.

    Attributes:
        path: that name.
        is_copy: whether its files are empty, and only their names can be used.
        originals: of a copy, what each of its files stands for.
    """

    path: str
    is_copy: bool = False
    originals: dict[str, str] = field(default_factory=dict)

    def original(self, path: str) -> str:
        """The file that a file of this folder stands for."""
        return self.originals[os.path.realpath(path)] if self.is_copy else path


@contextlib.contextmanager
def plain_folder(folder: str) -> Iterator[PlainFolder]:
    """The folder itself, or for as long as the context lasts a copy of its names."""
    names = [os.path.relpath(path, folder) for path in visible_files(folder, followlinks=False)]
    place = Path(os.path.realpath(folder))
    paths = [place.relative_to(place.anchor), *(Path(name) for name in names if _is_known(name))]
    if not any(_NOT_PLAIN.search(path.as_posix()) for path in paths):
        yield PlainFolder(os.path.join(os.curdir, folder))  # a bare name such as text is a format to the library
        return
    names += [name for name in _DESCRIPTIONS if os.path.isfile(os.path.join(folder, name))]
    with tempfile.TemporaryDirectory() as copy:
        yield PlainFolder(copy, True, _copy_names(folder, names, os.path.realpath(copy)))


def _is_known(name: str) -> bool:
    """Whether the library may read a file of this ending; of others it takes no notice."""
    return any(suffix in _ALL_ALLOWED_EXTENSIONS for suffix in Path(name).suffixes)


def configs_of_card(folder: str) -> MetadataConfigs:
    """What the card of a dataset says of each config; nothing if there is no card."""
    readme, overruling = (os.path.join(folder, name) for name in _DESCRIPTIONS)
    data = DatasetCard.load(readme).data if os.path.isfile(readme) else DatasetCardData()
    if os.path.isfile(overruling):
        content = yaml.safe_load(Path(overruling).read_text(encoding="utf-8")) or {}
        data = DatasetCardData(**{**data.to_dict(), **content})
    return MetadataConfigs.from_dataset_card_data(data)


def files_that_are_here(folder: str, configs: MetadataConfigs, name: str | None) -> DataFilesDict | None:
    """What is here of the files that a card names for a config, if not all; `None` if the library finds them itself.

    In a part of a dataset it does not: it looks at the first config, whichever is wanted, and at all splits.
    """
    if name is None or name not in configs:
        return None
    looked_at = [_patterns(configs[config]) for config in (next(iter(configs)), name)]
    if all(_has_files(folder, pattern) for patterns in looked_at for some in patterns.values() for pattern in some):
        return None
    here = {
        split: [pattern for pattern in some if _has_files(folder, pattern)] for split, some in looked_at[1].items()
    }
    return DataFilesDict.from_patterns(
        {split: patterns for split, patterns in here.items() if patterns},
        base_path=Path(folder).resolve().as_posix(),
        allowed_extensions=_ALL_ALLOWED_EXTENSIONS,
    )


def _patterns(config: dict[str, Any]) -> dict[str, list[str]]:
    """Those of each split that a card states."""
    if config.get("data_dir") or config.get("data_files") is None:
        return {}
    return sanitize_patterns(config["data_files"])


def _has_files(folder: str, pattern: str) -> bool:
    if "://" in pattern:
        return True
    try:
        resolve_pattern(pattern, Path(folder).resolve().as_posix(), _ALL_ALLOWED_EXTENSIONS)
    except FileNotFoundError:
        return False
    return True


def visible_files(folder: str, followlinks: bool = True) -> list[str]:
    """The files in a folder and below it, but no hidden ones.

    Those that describe a dataset are left out too. Below the folder such names may be texts; the library ignores them.
    """
    files: list[str] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=followlinks):
        place = os.path.realpath(root)
        folders[:] = [] if place in seen else [name for name in folders if not name.startswith(".")]
        if place not in seen:
            ignored = FILES_TO_IGNORE if root == folder else ()
            files += [os.path.join(root, name) for name in names if name not in ignored and name[0] != "."]
        seen.add(place)
    return sorted(filter(os.path.isfile, files))


def _copy_names(folder: str, names: list[str], copy: str) -> dict[str, str]:
    """Make an empty file for each name; return what they stand for."""
    originals: dict[str, str] = {}
    for name in sorted(names):
        path = os.path.join(copy, *(_NOT_PLAIN.sub("_", part) for part in Path(name).parts))
        stem, number = path, 1
        while path in originals:  # two names that differ in such characters only
            number += 1
            path = os.path.join(os.path.dirname(stem), f"{number:04}_{os.path.basename(stem)}")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if name in _DESCRIPTIONS:
            shutil.copyfile(os.path.join(folder, name), path)
        else:
            Path(path).touch()
        originals[path] = os.path.join(folder, name)
    return originals
