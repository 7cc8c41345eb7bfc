"""kill -9 inside a save costs nothing: the earlier or the new checkpoint is there, whole, and it is the one found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROUNDS, SEED = 16, 0


def rounds_of(module: str, *arguments: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.checkpoint.{module}", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    rounds = rounds_of("kills", str(tmp_path), str(ROUNDS), str(SEED))
    assert len(rounds) == ROUNDS
    for kill in rounds:
        assert kill["damaged"] == []  # what has its name is whole: nothing had to be passed over
        assert kill["found"] >= kill["completed_before_the_kill"]
        assert all(status == 7 for status in kill["survivors"])  # a failed save, no hang
    assert any(kill["half_written"] for kill in rounds)  # some of the kills did fall inside a save


@pytest.mark.slow
def test_a_kill_between_the_saves_of_two_machines_leaves_a_checkpoint_that_is_complete_over_both(
    tmp_path: Path,
) -> None:
    rounds = rounds_of("split_kills", str(tmp_path))
    assert len(rounds) == 8
    for kill in rounds:
        survivor = 1 - kill["victim"]
        named = kill["place"] not in ("_complete", "_give_name")  # on the victim's machine too, before it died
        assert kill["ends"][kill["victim"]] == -9
        assert kill["ends"][survivor] == (0 if named else 7), kill  # what is told of the save is true
        assert kill["found"] == ([3, 3] if named else [2, 2]), kill
        assert ("step_00000003" in kill["left"][survivor]) == (kill["place"] != "_complete"), kill
        assert ("step_00000002" in kill["left"][survivor]) == (kill["place"] != "_keep_house"), kill
    between = next(kill for kill in rounds if kill["place"] == "_give_name")
    assert "step_00000003" in between["left"][1]  # it had its name on the one machine, and not on the other
    assert "step_00000003" not in between["left"][0]
