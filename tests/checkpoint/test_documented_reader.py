"""The reader that docs/checkpoints.md shows to others reads what is written."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoint.tensors import write_by_hand

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def test_the_reader_in_the_documentation_reads_weights_and_moments(tmp_path):
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(source.splitlines()) <= 30
    namespace: dict = {}
    exec(compile(source, str(PAGE), "exec"), namespace)
    weights = {"a.weight": torch.randn(5, 7), "b.bias": torch.randn(2)}
    directory = write_by_hand(tmp_path, 5, weights, world_size=3)
    for kind, sign in (("master", 1), ("exp_avg", -1)):
        read = namespace["read_checkpoint"](directory, kind)
        assert read.keys() == weights.keys()
        assert all(np.array_equal(read[name], sign * tensor.numpy()) for name, tensor in weights.items())
    (directory / "rank_00002.safetensors").write_bytes(b"damaged")
    with pytest.raises(AssertionError, match="rank_00002"):
        namespace["read_checkpoint"](directory)
