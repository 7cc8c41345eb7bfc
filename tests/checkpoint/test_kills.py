"""kill -9 inside a save costs nothing: the earlier or the new checkpoint is there, whole, and it is the one found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROUNDS, SEED = 16, 0


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.kills", tmp_path, str(ROUNDS), str(SEED)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rounds = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rounds) == ROUNDS
    for kill in rounds:
        assert kill["damaged"] == []  # what has its name is whole: nothing had to be passed over
        assert kill["found"] >= kill["completed_before_the_kill"]
        assert all(status == 7 for status in kill["survivors"])  # a failed save, no hang
    assert any(kill["half_written"] for kill in rounds)  # some of the kills did fall inside a save
