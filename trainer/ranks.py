"""Who am I among the ranks, and where do we meet: read from whatever launcher started this process.

The deepspeed launcher and torchrun export RANK, WORLD_SIZE and LOCAL_RANK; srun exports SLURM_*, Open MPI's mpirun
OMPI_*; a plain `python launch/pretrain.py` exports nothing and is a run of one rank. What the launcher does not say
(DeepSpeed's own Slurm and MPI launchers do not say RANK) is read here from what it does.
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
    meeting_point: tuple[str, int] | None = None
    """Address and port that rank 0 listens at; None = this machine, at any port."""


@dataclass(frozen=True)
class _Names:
    """What a launcher calls things."""

    rank: str
    world_size: str
    local_rank: str
    local_world_size: tuple[str, ...]

    @property
    def required(self) -> tuple[str, str, str]:
        return self.rank, self.world_size, self.local_rank


_COMMON = _Names("RANK", "WORLD_SIZE", "LOCAL_RANK", ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"))  # torchrun, deepspeed
_OPEN_MPI = _Names(
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", ("OMPI_COMM_WORLD_LOCAL_SIZE",)
)
_SRUN = _Names("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ("SLURM_STEP_TASKS_PER_NODE",))
RANK_NAMES = (_COMMON.rank, _OPEN_MPI.rank, _SRUN.rank)
"""The variables that may say this process's rank, the first that is set counts."""


def resolve_ranks(environment: Mapping[str, str]) -> Ranks:
    """Rank, world size and meeting point from the launcher's environment variables.

    Raises `BadInput` when they are incomplete or contradict each other."""
    names = _launcher(environment)
    if names is None:
        return Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1)
    try:
        rank, world_size, local_rank = (int(environment[name]) for name in names.required)
    except KeyError as error:
        given = ", ".join(name for name in names.required if name in environment)
        raise BadInput(f"launcher environment: {given} set but not {error.args[0]}; {_MEND}") from None
    except ValueError as error:
        together = ", ".join(names.required)
        raise BadInput(f"launcher environment: {together} must be integers ({error}); {_MEND}") from None
    if not 0 <= rank < world_size:
        raise BadInput(f"launcher environment: rank {rank} is not below world size {world_size}; {_MEND}")
    if names is _COMMON:
        _refuse_lonely_tasks(environment, world_size)
        _refuse_restarts_at_one_store(environment)
    local_world_size = _local_world_size(environment, names, world_size)
    if not 0 <= local_rank < local_world_size:
        whole = "world size" if local_world_size == world_size else "the number of ranks on this machine,"
        raise BadInput(
            f"launcher environment: local rank {local_rank} is not below {whole} {local_world_size}; {_MEND}"
        )
    if names is _SRUN and re.fullmatch("[^,]+", environment.get("CUDA_VISIBLE_DEVICES", "")):
        local_rank = 0  # srun has bound this task to its own GPU and shows it no other
    meeting_point = _meeting_point(environment, names) if world_size > 1 else None
    return Ranks(rank, local_rank, world_size, local_world_size, meeting_point)


def _launcher(environment: Mapping[str, str]) -> _Names | None:
    """The innermost launcher: torchrun may run below srun, and Open MPI starts its daemons with it."""
    if any(name in environment for name in _COMMON.required):
        return _COMMON
    if _OPEN_MPI.rank in environment:
        return _OPEN_MPI
    if _SRUN.world_size in environment:  # set by srun for its tasks, and not by sbatch for the shell of a batch file
        return _SRUN
    return None


def _refuse_lonely_tasks(environment: Mapping[str, str], world_size: int) -> None:
    """RANK and WORLD_SIZE exported by hand in a batch file reach every task of srun or mpirun, and all would write one
    run."""
    if any(name in environment for name in _COMMON.local_world_size):
        return  # torchrun or deepspeed has started this process, whatever started that
    for launcher, names in (("mpirun", _OPEN_MPI), ("srun", _SRUN)):
        tasks = environment.get(names.world_size, "")
        if tasks.isdigit() and world_size < int(tasks):
            raise BadInput(
                f"launcher environment: WORLD_SIZE is {world_size} but {launcher} started {tasks} tasks; unset RANK, "
                f"WORLD_SIZE and LOCAL_RANK, and {launcher}'s own variables count"
            )
        rank, its_rank = environment["RANK"], environment.get(names.rank, "")
        if tasks == str(world_size) and rank != its_rank:
            raise BadInput(
                f"launcher environment: RANK is {rank} but {launcher} calls this task {its_rank}; unset RANK, "
                f"WORLD_SIZE and LOCAL_RANK, and {launcher}'s own variables count"
            )


def _refuse_restarts_at_one_store(environment: Mapping[str, str]) -> None:
    """torchrun (of torch 2.14) gives restarted ranks the store of those before, where they read dead ranks' addresses:
    they cannot connect, and fail again until no restart is left."""
    restarts, one_store = environment.get("TORCHELASTIC_MAX_RESTARTS", "0"), "TORCHELASTIC_USE_AGENT_STORE"
    if restarts != "0" and environment.get(one_store) == "True":
        raise BadInput(
            f"launcher environment: torchrun --max_restarts {restarts} fails to restart with a shared store; export "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun on every machine, with --rdzv_backend c10d"
        )


def _meeting_point(environment: Mapping[str, str], names: _Names) -> tuple[str, int]:
    """MASTER_ADDR and MASTER_PORT; in a Slurm job, what they leave open is the first node and a port by the job's
    number."""
    found = dict(environment)
    if names is _SRUN:
        found.setdefault("MASTER_ADDR", _first_host(environment.get("SLURM_STEP_NODELIST", "")))
        job, step = environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", "0")
        if job.isdigit() and step.isdigit():
            found.setdefault("MASTER_PORT", str(20000 + (int(job) + 97 * int(step)) % 10000))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not found.get(name):
            raise BadInput(f"launcher environment: {name} is not set; export it for all ranks before the launch")
    port = found["MASTER_PORT"]
    if not (port.isdigit() and 0 < int(port) < 65536):
        raise BadInput(f"launcher environment: MASTER_PORT is {port!r}; give a port from 1 to 65535")
    return found["MASTER_ADDR"], int(port)


def _first_host(nodes: str) -> str:
    """Of a list as Slurm writes it: 'gpu[07-09,12],login' → 'gpu07'."""
    first = re.match(r"(?:[^,\[]|\[[^]]*\])*", nodes)
    return re.sub(r"\[(\d+)[^]]*\]", r"\1", first.group() if first else "")


def _local_world_size(environment: Mapping[str, str], names: _Names, world_size: int) -> int:
    """The ranks on this machine; where the launcher does not say, all of them."""
    for name in names.local_world_size:
        value = environment.get(name, "")
        if names is _SRUN and value:
            return _tasks_on_node(value, environment.get("SLURM_NODEID", "0"))
        if value.isdigit() and int(value) > 0:
            return int(value)
    return world_size


def _tasks_on_node(tasks: str, node: str) -> int:
    """Of a list as Slurm writes it, '8(x2),4' for three nodes: how many tasks the node of that number has."""
    by_node: list[int] = []
    for number, repeated in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):
        by_node += [int(number)] * int(repeated or 1)
    if not (node.isdigit() and int(node) < len(by_node)):
        raise BadInput(f"launcher environment: SLURM_NODEID is {node!r} in tasks per node {tasks!r}; {_MEND}")
    return by_node[int(node)]


def export_ranks(ranks: Ranks) -> None:
    """Set the five variables that torch's and DeepSpeed's rendezvous read, for launchers that set other ones."""
    os.environ |= {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_RANK": str(ranks.local_rank),
    }
    if ranks.meeting_point is not None:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = ranks.meeting_point[0], str(ranks.meeting_point[1])
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])


def rank_ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] → '0-2, 5'."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


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
