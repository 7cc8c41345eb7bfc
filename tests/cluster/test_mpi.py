"""Open MPI's mpirun over ssh on two hosts: its ranks are ours."""

import json
import shutil
import sys

import pytest

from tests.cluster.lab import Lab
from tests.cluster.launching import environment_of_a_host

pytestmark = pytest.mark.cluster


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here: apt-get install openmpi-bin")
def test_each_process_of_mpirun_is_a_rank(lab: Lab) -> None:
    start = ["mpirun", "--allow-run-as-root", "--host", "node-1:2,node-2:1", "-np", "3"]
    exported = [word for name in ("MASTER_ADDR=node-1", "MASTER_PORT=29500", "PYTHONPATH") for word in ("-x", name)]
    done = lab.hosts[0].run(*start, *exported, sys.executable, "-m", "tests.cluster.who",
                            environment=environment_of_a_host(lab))  # fmt: skip
    assert done.returncode == 0, done.stderr
    ranks = sorted((json.loads(line)[1] for line in done.stdout.splitlines()), key=lambda told: told["rank"])
    assert [told["rank"] for told in ranks] == [0, 1, 2]
    assert [told["local_rank"] for told in ranks] == [0, 1, 0]
    assert [told["local_world_size"] for told in ranks] == [2, 2, 1]
    assert {told["world_size"] for told in ranks} == {3}
    assert {tuple(told["meeting_point"]) for told in ranks} == {("node-1", 29500)}
