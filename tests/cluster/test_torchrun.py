"""torchrun on two hosts that meet at a c10d store: a killed rank, and a run that comes back by itself."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.launching import LENGTH, ClusterRun
from tests.launch.running import Run, assert_same_run

pytestmark = pytest.mark.cluster


def test_ranks_that_lost_one_are_started_again_and_resume(
    lab: Lab, tmp_path: Path, shards: Path, ds_configs: dict[int, Path], references: Callable[[int], Run]
) -> None:
    with ClusterRun(lab, tmp_path / "run", shards) as run:
        run.start_torchrun({"node-1": 1, "node-2": 1}, LENGTH, ds_config=ds_configs[2])
        run.wait_for_step(8)
        run.rank(1).kill()
        assert run.end() == 0, run.printed[-3000:]
        assert [event["event"] for event in run.events()].count("resume") == 1
        assert "error on rank 0: rank 1 is gone" in run.printed
        assert_same_run(run, references(2))
