"""Rank and world size from every launcher's environment."""

import os

import pytest

from trainer.errors import BadInput
from trainer.ranks import Ranks, export_ranks, resolve_ranks

RENDEZVOUS = {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
MET = ("a", 1)
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "12",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),2,2",
    "SLURM_NODEID": "1",
}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
          "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks(0, 0, 1, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
         Ranks(3, 1, 4, 2, MET)),  # torchrun
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}, Ranks(3, 1, 4, 2, MET)),  # deepspeed
        (SRUN, Ranks(5, 1, 12, 4, MET)),
        (SRUN | {"SLURM_NODEID": "2"}, Ranks(5, 1, 12, 2, MET)),  # the third node has fewer tasks
        (SRUN | {"CUDA_VISIBLE_DEVICES": "3"}, Ranks(5, 0, 12, 4, MET)),  # each task sees its own GPU alone
        (SRUN | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, Ranks(5, 1, 12, 4, MET)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, Ranks(0, 0, 1, 1)),  # a batch file's shell
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "2", "SLURM_PROCID": "7"},
         Ranks(0, 0, 2, 2, MET)),  # torchrun inside a Slurm job
        ({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "SLURM_PROCID": "1",
          "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}, Ranks(9, 1, 16, 8, MET)),  # one torchrun per srun task
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_MAX_RESTARTS": "3",
          "TORCHELASTIC_USE_AGENT_STORE": "False"}, Ranks(0, 0, 2, 1, MET)),
        (MPIRUN, Ranks(3, 1, 4, 2, MET)),
        (MPIRUN | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}, Ranks(3, 1, 4, 2, MET)),
    ],
)  # fmt: skip
def test_each_launcher_is_understood(environment, expected):
    assert resolve_ranks(environment | RENDEZVOUS) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0", **RENDEZVOUS}, "not WORLD_SIZE"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **RENDEZVOUS}, "must be integers"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **RENDEZVOUS}, "not below world size"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1"}, "MASTER_ADDR is not set"),
        (
            {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "LOCAL_SIZE": "2", **RENDEZVOUS},
            "ranks on this machine, 2",
        ),
        (
            {
                "RANK": "0",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1",
                "TORCHELASTIC_MAX_RESTARTS": "3",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                **RENDEZVOUS,
            },
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        ),
        (MPIRUN, "MASTER_ADDR is not set"),
        (MPIRUN | RENDEZVOUS | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "mpirun started 4 tasks"),
        (MPIRUN | RENDEZVOUS | {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "RANK is 0 but mpirun calls .* 3"),
        (SRUN | RENDEZVOUS | {"SLURM_NODEID": "4"}, "SLURM_NODEID is '4'"),
    ],
)
def test_a_contradictory_environment_is_refused(environment, words):
    with pytest.raises(BadInput, match=words):
        resolve_ranks(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[07-09,12],login", "gpu07"),
        ("a,b", "a"),
        ("node-1", "node-1"),
        ("r[1-2]n[3,5]", "r1n3"),
        ("x[4]-ib", "x4-ib"),
    ],
)
def test_in_a_slurm_job_the_ranks_meet_on_its_first_node(nodes, first):
    job = {"SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"}
    assert resolve_ranks(SRUN | job).meeting_point == (first, 24711)
    assert resolve_ranks(SRUN | job | {"SLURM_STEP_ID": "1"}).meeting_point != (first, 24711)
    assert resolve_ranks(SRUN | job | {"MASTER_PORT": "5"}).meeting_point == (first, 5)


def test_what_was_resolved_is_exported_for_torch(monkeypatch):
    monkeypatch.setattr("os.environ", {})
    export_ranks(resolve_ranks(SRUN | RENDEZVOUS))
    assert os.environ == {"RANK": "5", "WORLD_SIZE": "12", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
