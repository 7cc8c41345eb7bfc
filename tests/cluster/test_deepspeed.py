"""`deepspeed --hostfile` over pdsh and ssh on two hosts: what the network and lost machines do to a run."""

import json
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.launching import ClusterRun
from tests.launch.running import assert_same_run

pytestmark = pytest.mark.slow

ZERO2 = "ds_configs/zero2_cpu.json"
SHORT = "train.epochs=1"
HANG = "train.hang_timeout=30s"


@pytest.fixture(scope="module")
def reference(lab: Lab, tmp_path_factory: pytest.TempPathFactory, shards: Path) -> ClusterRun:
    """Both ranks on one host, left alone."""
    with ClusterRun(lab, tmp_path_factory.mktemp("reference") / "run", shards) as run:
        run.start_pdsh({"node-1": 2}, SHORT, ds_config=ZERO2)
        assert run.end() == 0, run.printed[-3000:]
        return run


def test_two_hosts_train_as_one_does(lab: Lab, tmp_path: Path, shards: Path, reference: ClusterRun) -> None:
    with ClusterRun(lab, tmp_path / "run", shards) as run:
        run.start_pdsh({"node-1": 1, "node-2": 1}, SHORT, ds_config=ZERO2)
        assert run.end() == 0, run.printed[-3000:]
        assert sum(event["event"] == "freeze" for event in run.events()) >= 2
        assert_same_run(run, reference)


@pytest.mark.parametrize("stage", [1, 3])
def test_other_zero_stages_do_too(lab: Lab, tmp_path: Path, shards: Path, stage: int) -> None:
    config = tmp_path / "ds_config.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    with ClusterRun(lab, tmp_path / "two", shards) as two, ClusterRun(lab, tmp_path / "one", shards) as one:
        for run, slots in ((two, {"node-1": 1, "node-2": 1}), (one, {"node-1": 2})):
            run.start_pdsh(slots, SHORT, ds_config=config)
            assert run.end() == 0, run.printed[-3000:]
        assert_same_run(two, one)


def test_a_cut_cable_ends_both_sides_with_a_report_and_the_run_goes_on_on_the_host_that_is_left(
    lab: Lab, tmp_path: Path, shards: Path, reference: ClusterRun
) -> None:
    with ClusterRun(lab, tmp_path / "run", shards) as run:
        run.start_pdsh({"node-1": 1, "node-2": 1}, SHORT, HANG, ds_config=ZERO2)
        run.wait_for_step(8)
        lab.hosts[1].cut()
        assert run.end() not in (0, 75)  # and no process is left on either host
        lab.hosts[1].mend()
        assert "hang: no progress for 30 s (train.hang_timeout); this is rank 0, in step" in run.printed
        assert "rank 1: last seen in step" in run.printed
        assert "rank 0 does not answer: its process is stopped or gone, or its machine cannot be reached" in run.log(1)
        run.start_pdsh({"node-1": 2}, SHORT, ds_config=ZERO2)
        assert run.end() == 0, run.printed[-3000:]
        assert_same_run(run, reference)


def test_when_the_host_of_rank_zero_loses_power_the_run_goes_on_on_the_other(
    lab_is_possible: None, tmp_path: Path, shards: Path, reference: ClusterRun
) -> None:
    with Lab(2, tmp_path / "lab") as lab, ClusterRun(lab, tmp_path / "run", shards) as run:
        run.start_pdsh({"node-1": 1, "node-2": 1}, SHORT, HANG, ds_config=ZERO2)
        run.wait_for_step(8)
        lab.hosts[0].power_off()  # and with it the deepspeed command, which ran there
        run.end()
        assert "rank 0 does not answer" in run.log(1)
        run.start_pdsh({"node-2": 2}, SHORT, ds_config=ZERO2)
        assert run.end() == 0, run.printed[-3000:]
        assert "looking for 20 s whether the run on node-1 (process" in run.printed
        assert "is gone" in run.printed
        assert_same_run(run, reference)
