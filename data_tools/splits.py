"""Which splits have an index in a folder."""

import json
from pathlib import Path

from trainer.data.shard_index import offsets_file
from trainer.data.urls import local_path, scheme_of

_KIND = "wids-shard-index-v1"  # what `write_index` and wids call theirs; other .json files lie beside them


def splits_in(index: str) -> list[str]:
    """The splits with an index in the folder `index`, sorted; none if it is a file, a URL or no folder.

    A damaged index counts, for the byte ranges beside it: whoever reads it will say what is wrong with it."""
    if scheme_of(index) is not None or not local_path(index).is_dir():
        return []
    files = sorted(local_path(index).glob("*.json"))
    return [file.stem for file in files if offsets_file(file).exists() or _is_index(file)]


def _is_index(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("__kind__") == _KIND
