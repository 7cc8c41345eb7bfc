"""What a step moves and holds at every frozen count, measured beside `trainer.planning`'s prediction of it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from benchmarks.freezing_cases import Case, freeze_to, random_batch, resolved_config, timed_step
from benchmarks.tables import Section
from tests.distributed import run_on_ranks
from tests.engine.allocations import Allocations
from tests.engine.traffic import counted_traffic
from trainer.engine.config import OptimizerConfig
from trainer.engine.engine import FreezingEngine
from trainer.model.localmim import LocalMIM
from trainer.planning.activations import saved_activation_bytes
from trainer.planning.memory import step_memory
from trainer.planning.parameter_use import planned_use
from trainer.planning.traffic import step_traffic

WORLD_SIZE, ZERO_STAGE = 2, 2
COLUMNS = ("reduced, M", "reduced, MB", "saved, MB", "optimizer, MB", "peak falls by, MB")
TIMEOUT = 900
MB = 1e6


@dataclass(frozen=True)
class Held:
    """At one frozen count: elements and bytes of a step's reduction, bytes held."""

    reduced_elements: int
    reduced_bytes: int
    saved: int
    optimizer: int
    peak: int


def memory_section(case: Case) -> Section:
    """A row for every frozen count, the figures of the rank that needs most beside the predicted ones."""
    by_rank = run_on_ranks(_measure, WORLD_SIZE, case, timeout=TIMEOUT)
    measured = [max(held, key=lambda rank: rank.peak) for held in zip(*by_rank, strict=True)]
    predicted = [_predicted(case, count) for count in case.counts]
    columns = zip(columns_of(measured), columns_of(predicted), strict=True)
    cells = [[f"{is_ / MB:.2f} / {should / MB:.2f}" for is_, should in zip(*pair, strict=True)] for pair in columns]
    return Section(
        f"What a step of {case.name} moves and holds",
        f"fp32, micro-batch {case.micro_batch}, ZeRO-{ZERO_STAGE}, {WORLD_SIZE} ranks; measured on the rank with the "
        "higher peak / predicted by `trainer.planning`. *Reduced*: what passes through DeepSpeed's reducing "
        "collectives in a step, in millions of elements and in MB. *Saved*: storages that autograd keeps between "
        "forward and backward, without the parameters. *Optimizer*: fp32 masters and moments. *Peak*: how far the "
        "highest sum of all live tensors in a step lies below the unfrozen step's, "
        f"{measured[0].peak / MB:.0f} / {predicted[0].peak / MB:.0f} MB.",
        ["frozen units", *COLUMNS],
        [[str(count), *row] for count, *row in zip(case.counts, *cells, strict=True)],
    )


def columns_of(rows: Sequence[Held]) -> list[list[int]]:
    """As `COLUMNS` names them."""
    return [
        [row.reduced_elements for row in rows],
        [row.reduced_bytes for row in rows],
        [row.saved for row in rows],
        [row.optimizer for row in rows],
        [rows[0].peak - row.peak for row in rows],
    ]


def _predicted(case: Case, frozen_units: int) -> Held:
    resolved = resolved_config(case.micro_batch, ZERO_STAGE, WORLD_SIZE)
    traffic = step_traffic(planned_use(case.model, frozen_units), resolved, WORLD_SIZE)
    memory = step_memory(case.model, resolved, WORLD_SIZE, frozen_units, case.micro_batch)
    return Held(
        traffic.reduced_elements,
        traffic.reduced_bytes,
        saved_activation_bytes(case.model, frozen_units, case.micro_batch, "fp32"),
        memory.masters + memory.moments,
        memory.total,
    )


def _measure(case: Case) -> list[Held]:
    """Runs on every rank: one entry for each frozen count.

    Of the two steps at each, the first makes the moments and shows what autograd saves, the second is the one that is
    counted."""
    found = []
    torch.manual_seed(0)
    resolved = resolved_config(case.micro_batch, ZERO_STAGE, dist.get_world_size())
    engine = FreezingEngine(LocalMIM(case.model), resolved, OptimizerConfig())
    batch = random_batch(case.model, case.micro_batch)
    for count in case.counts:
        freeze_to(engine, count)
        with saved_storages(engine.model) as saved:
            timed_step(engine, *batch, time.perf_counter)
        with Allocations() as allocations, counted_traffic() as traffic:
            timed_step(engine, *batch, time.perf_counter)
        elements = sum(call.elements for call in traffic.reductions)
        reduced_bytes = sum(call.bytes for call in traffic.reductions)
        held = (sum(saved.values()), engine.optimizer_bytes(), allocations.highest)
        found.append(Held(elements, reduced_bytes, *held))
    return found


@contextmanager
def saved_storages(model: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Address → bytes of every storage that autograd saves for a backward pass inside the context, the model's
    parameters left out. What several operations save, and views of it, count once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an operation that saves its own output would hold itself

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
