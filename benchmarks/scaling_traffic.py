"""What a step sends, counted on two ranks and planned, at every frozen count."""

from dataclasses import replace

import torch.distributed as dist

from benchmarks.scaling_ranks import Case, build_engine, made_batches, step_on
from benchmarks.tables import Section
from tests.distributed import RankPool
from tests.engine.cases import close
from tests.engine.traffic import counted_traffic
from trainer.planning.parameter_use import planned_use
from trainer.planning.traffic import step_traffic

RANKS = 2
STAGES = (0, 1, 2, 3)
TIMEOUT = 900
Figures = tuple[int, int, int, int, float]
"""Gradient elements reduced, weight elements gathered, the bytes of both, and the bytes that a rank sends."""


def traffic_section(case: Case) -> Section:
    """A row for every frozen count, the stages beside one another."""
    with RankPool(RANKS) as ranks:
        by_stage = [ranks.run(count_and_plan, replace(case, stage=stage), timeout=TIMEOUT)[0] for stage in STAGES]
    pairs = [pair for by_frozen_units in by_stage for pair in by_frozen_units]
    equal = sum(counted == planned for counted, planned in pairs)
    return Section(
        f"What a step sends: {case.name}",
        f"{RANKS} ranks, {case.precision}, accumulation 1. By ZeRO stage: millions of gradient elements reduced + "
        "millions of weight elements gathered, and the megabytes that a rank sends for them with ring algorithms (an "
        "all-reduce is a reduce-scatter and an all-gather). Counted in a training step on real ranks.",
        ["frozen units", *(f"ZeRO-{stage}" for stage in STAGES)],
        [
            [str(frozen_units), *(_cell(*by_stage[stage][frozen_units]) for stage in STAGES)]
            for frozen_units in range(len(by_stage[0]))
        ],
        [
            f"Counted = planned (`trainer.planning.traffic`), elements, bytes and bytes sent: {equal} of {len(pairs)} "
            "cells; target: all."
        ],
    )


def count_and_plan(case: Case) -> list[tuple[Figures, Figures]]:
    """Runs on every rank; by frozen count."""
    engine, batches = build_engine(case), made_batches(case)
    found = []
    for frozen_units in range(case.model.num_units):
        if frozen_units:
            engine.freeze(frozen_units)
        for _ in range(2 if case.stage == 3 else 0):  # ZeRO-3 learns the order of the modules first
            step_on(engine, batches)
        with counted_traffic() as counted:
            step_on(engine, batches)
        planned = step_traffic(planned_use(case.model, frozen_units), engine.resolved, dist.get_world_size())
        found.append(
            (
                (
                    sum(call.elements for call in counted.reductions),
                    sum(call.elements for call in counted.gathers),
                    sum(call.bytes for call in counted.reductions),
                    sum(call.bytes for call in counted.gathers),
                    counted.sent_bytes,
                ),
                (
                    planned.reduced_elements,
                    planned.gathered_elements,
                    planned.reduced_bytes,
                    planned.gathered_bytes,
                    planned.sent_bytes,
                ),
            )
        )
    close(engine)
    return found


def _cell(counted: Figures, planned: Figures) -> str:
    text = _text(counted)
    return text if counted == planned else f"{text} (planned: {_text(planned)})"


def _text(figures: Figures) -> str:
    reduced, gathered, _, _, sent = figures
    return f"{reduced / 1e6:.2f} + {gathered / 1e6:.2f}; {sent / 1e6:.1f} MB"
