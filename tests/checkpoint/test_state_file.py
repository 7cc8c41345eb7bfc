"""The stream writer makes what the safetensors library reads, and its checksum is the file's."""

import hashlib
import io

import pytest
import torch
from safetensors import safe_open

from trainer.checkpoint.state_file import sha256, split_key, tensor_key, write_fp32


def test_the_library_reads_what_is_streamed(tmp_path):
    tensors = {
        "a": torch.randn(3, 5),
        "empty": torch.zeros(0, 2),
        "scalar": torch.tensor(7.0),
        "ü:b.c:0": torch.ones(1),
    }
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        size, digest = write_fp32(stream, {k: list(v.shape) for k, v in tensors.items()}, tensors.values(), {"s": "1"})
    assert size == path.stat().st_size
    assert digest == sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"s": "1"}
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())


def test_a_rank_that_owns_nothing_writes_a_file_too(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        write_fp32(stream, {}, [])
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == []


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2).to_sparse()])
def test_what_is_not_fp32_of_the_promised_shape_is_refused(tensor):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        write_fp32(io.BytesIO(), {"w": [2]}, [tensor])


def test_keys_are_read_back():
    assert split_key(tensor_key("exp_avg", "blocks.3.mlp.fc1.weight", 73728)) == (
        "exp_avg", "blocks.3.mlp.fc1.weight", 73728)  # fmt: skip
    with pytest.raises(ValueError, match="unpack"):
        split_key("blocks.3.mlp.fc1.weight")
