"""launch/cluster/pretrain.sbatch on a real Slurm of two hosts: ranks, GPUs, a signal, and the job that comes back."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.launching import LENGTH, ClusterRun
from tests.cluster.slurm import Slurm, why_no_slurm
from tests.launch.running import Run, assert_same_run

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def slurm(lab: Lab) -> Slurm:
    if reason := why_no_slurm():
        pytest.skip(f"no Slurm here: {reason}")
    return Slurm(lab)


@pytest.mark.parametrize("options", [["--gpus-per-node=2"], ["--gpus-per-task=1"]])
def test_each_task_is_a_rank_with_a_gpu_of_its_own(slurm: Slurm, options: list[str]) -> None:
    told = slurm.call("srun", "--nodes=2", "--ntasks-per-node=2", *options, sys.executable, "-m", "tests.cluster.who")
    tasks = sorted((json.loads(line) for line in told.splitlines()), key=lambda task: task[1]["rank"])
    assert [ranks["rank"] for _, ranks in tasks] == [0, 1, 2, 3]
    assert {(ranks["world_size"], ranks["local_world_size"]) for _, ranks in tasks} == {(4, 2)}
    (meeting_point,) = {tuple(ranks["meeting_point"]) for _, ranks in tasks}
    assert meeting_point[0] == "node-1"
    gpus = [visible.split(",")[ranks["local_rank"]] for visible, ranks in tasks]
    assert gpus == ["0", "1", "0", "1"]


@pytest.mark.slow
def test_a_job_that_gets_a_signal_saves_and_is_queued_again_until_it_is_done(
    slurm: Slurm, lab: Lab, tmp_path: Path, shards: Path, references: Callable[[int], Run], ds_configs: dict[int, Path]
) -> None:
    with ClusterRun(lab, tmp_path / "run", shards) as run:
        size = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=30"]
        job = slurm.submit(run, LENGTH, ds_config=ds_configs[2], options=size)
        slurm.wait_for_step(job, run, 8)
        slurm.call("scancel", "--signal=USR1", job)  # as --signal does before the time limit: to all steps of the job
        assert slurm.wait_for_end(job) == "COMPLETED", run.printed
        assert f"job {job}, start 1: srun ended with exit code 75" in run.printed
        assert f"job {job}, start 2: srun ended with exit code 0" in run.printed
        assert "(SIGUSR1)" in run.printed
        assert [event["event"] for event in run.events()].count("resume") == 1
        assert_same_run(run, references(2))
