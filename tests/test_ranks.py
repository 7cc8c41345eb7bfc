"""Rank and world size from every launcher's environment."""

import pytest

from trainer.errors import BadInput
from trainer.ranks import Ranks, resolve_ranks

RENDEZVOUS = {"MASTER_ADDR": "a", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks(0, 0, 1, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Ranks(3, 1, 4, 2)),  # torchrun
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}, Ranks(3, 1, 4, 2)),  # deepspeed
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
         Ranks(5, 1, 8, 4)),  # srun
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, Ranks(0, 0, 1, 1)),  # a batch file's shell
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "2", "SLURM_PROCID": "7"},
         Ranks(0, 0, 2, 2)),  # torchrun inside a Slurm job
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
    ],
)
def test_a_contradictory_environment_is_refused(environment, words):
    with pytest.raises(BadInput, match=words):
        resolve_ranks(environment)
