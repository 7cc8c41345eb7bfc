"""Safetensors files written as a stream: tensor after tensor, hashed on the way, so that nothing is read twice.

The library writes only what is all in memory at once, and its file would have to be read again for its checksum. The
format is simple enough to write here, and the library reads it: 8 bytes with the header's length, a JSON header with
each tensor's dtype, shape and place, then the bytes.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

MASTER = "master"  # fp32 weights of the trained and of the frozen parameters alike
REFERENCE = "reference"  # what a freezing policy compares with: no parameters
BYTES_PER_ELEMENT = 4
_READ_BYTES = 16 * 2**20


def tensor_key(kind: str, name: str, start: int) -> str:
    """Key of a fragment in a rank's file, e.g. ``exp_avg:blocks.3.mlp.fc1.weight:73728``."""
    return f"{kind}:{name}:{start}"


def split_key(key: str) -> tuple[str, str, int]:
    """(kind, parameter name, start) of a `tensor_key`. Raises ValueError for anything else."""
    kind, name, start = key.split(":")
    return kind, name, int(start)


def write_fp32(
    stream: BinaryIO,
    shapes: Mapping[str, list[int]],
    tensors: Iterable[torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Write a safetensors file of fp32 tensors into `stream`; returns its size in bytes and its sha256.

    `tensors` come in the order of `shapes`, contiguous and on the host; one is held at a time.
    Raises OSError where the disk does, ValueError for a tensor that does not fit its shape."""
    header = _header(shapes, metadata)
    stream.write(header)
    digest, size = hashlib.sha256(header), len(header)
    for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
        if list(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)} instead of float32 {shape}")
        if tensor.numel():
            content = tensor.detach().numpy().data.cast("B")
            stream.write(content)
            digest.update(content)
            size += len(content)
    return size, digest.hexdigest()


def _header(shapes: Mapping[str, list[int]], metadata: Mapping[str, str] | None) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, shape in shapes.items():
        end = position + torch.Size(shape).numel() * BYTES_PER_ELEMENT
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes, so that they can be mapped
    return struct.pack("<Q", len(text)) + text


def sha256(path: Path, progress: Callable[[int], None] = lambda bytes_read: None) -> str:
    """Hex digest of a file's content; `progress` is told of the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(done)
    return digest.hexdigest()
