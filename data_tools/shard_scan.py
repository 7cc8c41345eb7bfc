"""What a finished shard holds, found by reading it once."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.shard_index import Shard
from trainer.data.tar_members import BLOCK, TarDamage, parse_member


def describe_shard(path: Path) -> tuple[Shard, NDArray[np.int64]]:
    """A finished shard's entry in the index, and the byte range of each of its samples, int64 [samples, 2].

    Raises TarDamage if it is not a whole tar whose samples' members are adjacent."""
    digest = hashlib.sha256()
    ranges: list[list[int]] = []
    keys: list[str] = []
    with open(path, "rb") as file:
        while any(header := file.read(BLOCK)):
            member = parse_member(header, file.tell() - len(header))
            content = file.read(member.end - member.start)
            if len(content) < member.end - member.start:
                raise TarDamage(f"{path} ends inside '{member.name}'")
            digest.update(header + content)
            if keys and member.key == keys[-1]:
                ranges[-1][1] = member.end
            else:
                keys.append(member.key)
                ranges.append([member.header, member.end])
        digest.update(header + file.read())
        size = file.tell()
    if len(set(keys)) < len(keys):
        raise TarDamage(f"{path} holds samples whose members are not adjacent")
    shard = Shard(path.name, len(ranges), size, digest.hexdigest())
    return shard, np.array(ranges, dtype=np.int64).reshape(-1, 2)
