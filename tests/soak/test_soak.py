"""The soak test itself, in small: one life, two interruptions."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed import REPOSITORY
from tests.soak.compare import Difference, largest_differences
from tests.soak.life import Injected
from tests.soak.table import summary, table


@pytest.mark.exhaustive
def test_a_short_soak_survives_and_prints_its_table(tmp_path: Path) -> None:
    options = ["--lives", "1", "--interruptions", "2", "--seed", "23", "--work", tmp_path]
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *options],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=480,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\| (SIG|no room).* \| 1 \| 1 \| 0 \| – \|", done.stdout), done.stdout
    assert re.search(r"1 life, \d+ faults, \d+ survived \(seed 23", done.stdout)
    assert not list(tmp_path.iterdir())


def test_a_difference_is_found_and_told() -> None:
    ours = {("master", "w"): torch.ones(2), ("exp_avg", "w"): torch.tensor([0.0, float("nan")])}
    theirs = {("master", "w"): torch.tensor([1.0, 1.5]), ("exp_avg", "w"): torch.zeros(2)}
    assert largest_differences(ours, theirs) == (0.5, float("inf"))
    assert not Difference(0, 0.5, 0).same_bits
    lost = Injected("a kill", moved=False, trouble="lost", difference=Difference(0, 0.5, 0))
    assert "| a kill | 1 | 0 | 5.0e-01 | – |" in table([lost])
    assert "0 survived" in summary([lost], 1, 0, 1)
