"""`deepspeed --hostfile` over pdsh and ssh on two hosts: what the network and lost machines do to a run."""

import json
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.launching import ClusterRun
from tests.launch.running import assert_same_run

pytestmark = pytest.mark.slow

SHORT = "train.epochs=1"


@pytest.fixture
def zero(tmp_path: Path):
    def config(stage: int) -> Path:
        path = tmp_path / f"zero{stage}.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        return path

    return config


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_hosts_train_as_one_does(lab: Lab, tmp_path: Path, shards: Path, zero, stage: int) -> None:
    with ClusterRun(lab, tmp_path / "two", shards) as two, ClusterRun(lab, tmp_path / "one", shards) as one:
        for run, slots in ((two, (1, 1)), (one, (2,))):
            run.start_pdsh(slots, SHORT, ds_config=zero(stage))
            assert run.end() == 0, run.printed[-3000:]
        assert sum(event["event"] == "freeze" for event in two.events()) >= 2
        assert_same_run(two, one)
