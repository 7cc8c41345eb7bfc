"""`deepspeed --hostfile` over pdsh and ssh on two hosts: what the network and lost machines do to a run."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.lab import Lab
from tests.cluster.launching import LENGTH, ClusterRun
from tests.launch.running import Run, assert_same_run
from trainer.checkpoint.manifest import list_checkpoints, read_manifest, step_of

pytestmark = pytest.mark.cluster

HANG = "train.hang_timeout=30s"
BOTH = {"node-1": 1, "node-2": 1}


def test_two_hosts_train_as_one_does(
    lab: Lab, tmp_path: Path, shards: Path, ds_configs: dict[int, Path], references: Callable[[int], Run]
) -> None:
    with ClusterRun(lab, tmp_path / "run", shards) as run:
        run.start_pdsh(BOTH, LENGTH, ds_config=ds_configs[3])
        assert run.end() == 0, run.printed[-3000:]
        assert sum(event["event"] == "freeze" for event in run.events()) >= 2
        assert_same_run(run, references(3))
        threads = json.loads((run.directory / "environment.json").read_text())["cpu_threads"]
        assert threads == 1  # OMP_NUM_THREADS came with DS_ENV_FILE, by nothing else
        last = [event for event in run.events() if event["event"] == "step"][-1]
        assert [(node["node"], node["ranks"]) for node in last["nodes"]] == [("node-1", 1), ("node-2", 1)]


@pytest.mark.slow
def test_four_hosts_train_as_four_ranks_of_one_do(
    lab_is_possible: None, tmp_path: Path, shards: Path, ds_configs: dict[int, Path]
) -> None:
    with Run(tmp_path / "alone", shards) as alone:
        alone.start("torchrun", ds_config=ds_configs[2], ranks=4)
        assert alone.end() == 0, alone.printed[-3000:]
    with Lab(4, tmp_path / "lab") as lab, ClusterRun(lab, tmp_path / "run", shards) as run:
        run.start_pdsh(dict.fromkeys([host.name for host in lab.hosts], 1), ds_config=ds_configs[2])
        assert run.end() == 0, run.printed[-3000:]
        assert sum(event["event"] == "freeze" for event in run.events()) >= 2
        assert_same_run(run, alone)


@pytest.mark.parametrize(
    ("stage", "end", "target"),
    [
        (1, signal.SIGKILL, "ssh"),  # a connection is gone
        pytest.param(2, signal.SIGINT, "deepspeed", marks=pytest.mark.slow),  # Ctrl-C
    ],
)
def test_when_the_command_ends_early_all_hosts_save_and_leave_and_the_same_command_goes_on(
    lab: Lab,
    tmp_path: Path,
    shards: Path,
    ds_configs: dict[int, Path],
    references: Callable[[int], Run],
    stage: int,
    end: signal.Signals,
    target: str,
) -> None:
    with ClusterRun(lab, tmp_path / "run", shards) as run:
        run.start_pdsh(BOTH, LENGTH, ds_config=ds_configs[stage])
        run.wait_for_step(7)
        run.on_first_host(target).send_signal(end)
        assert run.end() != 0  # and no process is left on either host
        newest = step_of(list_checkpoints(run.directory / "checkpoints")[0])
        assert newest == max(run.losses())
        assert f"stopped at step {newest} (" in run.log(0)
        run.start_pdsh(BOTH, LENGTH, ds_config=ds_configs[stage])
        assert run.end() == 0, run.printed[-3000:]
        assert_same_run(run, references(stage))


@pytest.mark.slow
def test_a_run_whose_pdsh_is_killed_goes_on_to_its_end_without_a_console(
    lab: Lab, tmp_path: Path, shards: Path, ds_configs: dict[int, Path], references: Callable[[int], Run]
) -> None:
    with ClusterRun(lab, tmp_path / "run", shards) as run:
        run.start_pdsh(BOTH, LENGTH, ds_config=ds_configs[1])
        run.wait_for_step(7)
        run.on_first_host("pdsh").kill()  # its connections live on
        assert run.end() == 0  # DeepSpeed's command says nothing of a pdsh that a signal ended
        assert "step 108/108" not in run.printed
        assert "step 108/108" in run.log(0)
        assert_same_run(run, references(1))


@pytest.mark.slow
def test_a_run_on_the_hosts_own_disks_is_put_together_when_it_goes_on(
    lab: Lab, tmp_path: Path, shards: Path, ds_configs: dict[int, Path], references: Callable[[int], Run]
) -> None:
    with ClusterRun(lab, tmp_path / "on_own_disks", shards) as run:
        run.put_on_own_disks()
        run.start_pdsh(BOTH, LENGTH, ds_config=ds_configs[2])
        run.wait_for_step(7)
        run.on_first_host("deepspeed").send_signal(signal.SIGINT)
        assert run.end() != 0
        roots = [host.path(lab.local_disk / "on_own_disks" / "checkpoints") for host in lab.hosts]
        newest = list_checkpoints(roots[0])[0].name
        parts = [sorted(path.name for path in (root / newest).iterdir()) for root in roots]
        assert parts == [["manifest.json", f"rank_0000{rank}.safetensors"] for rank in range(2)]
        run.start_pdsh(BOTH, LENGTH, ds_config=ds_configs[2])
        assert run.end() == 0, run.printed[-3000:]
        assert "not one folder but 2: of ranks 0 (node-1), 1 (node-2)" in run.printed
        assert f"gathering {newest}: not all 2 storages have 2 files" in run.printed
        reference = references(2)
        assert run.losses() == reference.losses()
        ends = [read_manifest(list_checkpoints(root)[0]) for root in (*roots, reference.directory / "checkpoints")]
        assert ends[0].files == ends[1].files == ends[2].files  # sha256 of what each rank wrote
        assert ends[0].hosts == {"rank_00000.safetensors": "node-1", "rank_00001.safetensors": "node-2"}


def test_a_cut_cable_ends_both_sides_with_a_report_and_the_run_goes_on_on_the_host_that_is_left(
    lab: Lab, tmp_path: Path, shards: Path, ds_configs: dict[int, Path], references: Callable[[int], Run]
) -> None:
    with ClusterRun(lab, tmp_path / "run", shards) as run:
        run.start_pdsh(BOTH, LENGTH, HANG, ds_config=ds_configs[2])
        run.wait_for_step(8)
        lab.hosts[1].cut()
        assert run.end() not in (0, 75)  # and no process is left on either host
        lab.hosts[1].mend()
        assert "hang: no progress for 30 s (train.hang_timeout); this is rank 0, in step" in run.printed
        assert "rank 1: last seen in step" in run.printed
        assert "rank 0 does not answer: its process is stopped or gone, or its machine cannot be reached" in run.log(1)
        run.start_pdsh({"node-1": 2}, LENGTH, ds_config=ds_configs[2])
        assert run.end() == 0, run.printed[-3000:]
        assert_same_run(run, references(2))


@pytest.mark.slow
def test_when_the_host_of_rank_zero_loses_power_the_run_goes_on_on_the_other(
    lab_is_possible: None, tmp_path: Path, shards: Path, ds_configs: dict[int, Path], references: Callable[[int], Run]
) -> None:
    with Lab(2, tmp_path / "lab") as lab, ClusterRun(lab, tmp_path / "run", shards) as run:
        run.start_pdsh(BOTH, LENGTH, HANG, ds_config=ds_configs[2])
        run.wait_for_step(8)
        lab.hosts[0].power_off()  # and with it the deepspeed command, which ran there
        run.end()
        assert "rank 0 does not answer" in run.log(1)
        run.start_pdsh({"node-2": 2}, LENGTH, ds_config=ds_configs[2])
        assert run.end() == 0, run.printed[-3000:]
        assert "looking for 20 s whether the run on node-1 (process" in run.printed
        assert "is gone" in run.printed
        assert_same_run(run, references(2))
