"""Who am I among the ranks: read from whatever launcher started this process.

The deepspeed launcher and torchrun export RANK, WORLD_SIZE and LOCAL_RANK; srun exports SLURM_*; a plain
`python launch/pretrain.py` exports nothing and is a run of one rank.
"""

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from trainer.errors import BadInput

T = TypeVar("T")

_MEND = "use deepspeed, torchrun or srun"


@dataclass(frozen=True)
class Ranks:
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int


def resolve_ranks(environment: Mapping[str, str]) -> Ranks:
    """Rank and world size from the launcher's environment variables.

    Raises `BadInput` when they are incomplete or contradict each other."""
    names = {"rank": "RANK", "world_size": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
    if not any(name in environment for name in names.values()) and "SLURM_STEP_NUM_TASKS" in environment:
        # set by srun for its tasks, and not by sbatch for the shell of a batch file
        names = {"rank": "SLURM_PROCID", "world_size": "SLURM_STEP_NUM_TASKS", "local_rank": "SLURM_LOCALID"}
    elif not any(name in environment for name in names.values()):
        return Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1)
    try:
        found = {key: int(environment[name]) for key, name in names.items()}
    except KeyError as error:
        given = ", ".join(name for name in names.values() if name in environment)
        raise BadInput(f"launcher environment: {given} set but not {error.args[0]}; {_MEND}") from None
    except ValueError as error:
        together = ", ".join(names.values())
        raise BadInput(f"launcher environment: {together} must be integers ({error}); {_MEND}") from None
    if not 0 <= found["rank"] < found["world_size"]:
        raise BadInput(
            f"launcher environment: rank {found['rank']} is not below world size {found['world_size']}; {_MEND}"
        )
    _refuse_lonely_tasks(environment, found["world_size"])
    if found["world_size"] > 1:
        _require_meeting_point(environment)
    local_world_size = _local_world_size(environment, found["world_size"])
    if not 0 <= found["local_rank"] < found["world_size"]:
        raise BadInput(
            f"launcher environment: local rank {found['local_rank']} is not below world size {found['world_size']}; "
            f"{_MEND}"
        )
    return Ranks(**found, local_world_size=local_world_size)


def _refuse_lonely_tasks(environment: Mapping[str, str], world_size: int) -> None:
    """RANK and WORLD_SIZE exported by hand in a batch file reach every task of srun, and all would write one run."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    started_by_launcher = "LOCAL_WORLD_SIZE" in environment or "LOCAL_SIZE" in environment  # torchrun, deepspeed
    if tasks.isdigit() and world_size < int(tasks) and not started_by_launcher:
        raise BadInput(
            f"launcher environment: WORLD_SIZE is {world_size} but srun started {tasks} tasks; unset RANK, WORLD_SIZE "
            "and LOCAL_RANK, and srun's own variables count"
        )


def _require_meeting_point(environment: Mapping[str, str]) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise BadInput(f"launcher environment: {name} is not set; export it for all ranks before the launch")
    port = environment["MASTER_PORT"]
    if not (port.isdigit() and 0 < int(port) < 65536):
        raise BadInput(f"launcher environment: MASTER_PORT is {port!r}; give a port from 1 to 65535")


def export_ranks(ranks: Ranks) -> None:
    """Set the five variables that torch's and DeepSpeed's rendezvous read, for launchers that set other ones."""
    os.environ |= {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_RANK": str(ranks.local_rank),
    }
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])


def _local_world_size(environment: Mapping[str, str], world_size: int) -> int:
    """torchrun, the deepspeed launcher and Slurm each have their own name for the ranks on this machine.

    Slurm writes ``8(x2),4``; the first number serves, since it only decides the threads of a CPU run."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        number = re.match(r"[1-9]\d*", environment.get(name, ""))
        if number:
            return int(number.group())
    return world_size


def from_rank_zero(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 alone and return its result on every rank, after it is done.

    What it raises, every rank raises: nobody is left waiting in a collective. Needs the process group."""
    import torch.distributed as dist

    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def on_every_rank(action: Callable[[], T]) -> T:
    """Run `action` on every rank and return this rank's result, after all are done.

    What the machine of one rank refuses (`BadInput`), every rank refuses with that rank's message: nobody is left
    waiting in a later collective. Needs the process group."""
    import torch.distributed as dist

    result, refusal = None, None
    try:
        result = action()
    except BadInput as error:
        refusal = str(error)
    refusals: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(refusals, refusal)
    for rank, message in enumerate(refusals):
        if message is not None:
            raise BadInput(f"rank {rank}: {message}")
    return cast(T, result)
