"""Amounts of memory as people write them: 80GB, 24GiB, 512 MiB or a number of bytes."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNITS = {"": 1, **{f"{prefix}B": 1000**power for power, prefix in enumerate(["", "k", "M", "G", "T"])}}
_UNITS |= {f"{prefix}iB": 1024**power for power, prefix in enumerate(["K", "M", "G", "T"], start=1)}
_SPELLINGS = {name.lower(): factor for name, factor in _UNITS.items()}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def parse_bytes(value: Any) -> Any:
    """``24GiB`` → 25769803776; what is no text stays as it is. Raises ValueError saying how to write it."""
    if not isinstance(value, str):
        return value
    parts = _SIZE.fullmatch(value.strip().lower())
    if parts is None or parts[2] not in _SPELLINGS:
        raise ValueError(f"write an amount of memory as 80GB, 24GiB, 512MiB or a number of bytes, not {value!r}")
    return int(float(parts[1]) * _SPELLINGS[parts[2]])


Bytes = Annotated[int, BeforeValidator(parse_bytes)]
"""A number of bytes, which a recipe may also write as 80GB (powers of 1000) or 24GiB (powers of 1024)."""


def show_bytes(size: int) -> str:
    """1840000000 → '1.84 GB': three digits, powers of 1000."""
    for name in ("TB", "GB", "MB", "kB"):
        if size >= 0.9995 * _UNITS[name]:  # what would be rounded up to 1000 of the unit below
            return f"{size / _UNITS[name]:.3g} {name}"
    return f"{size} B"
