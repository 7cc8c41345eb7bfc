"""A run worked out in advance: what each rank holds, computes and sends from one freeze to the next."""

from dataclasses import dataclass

from trainer.planning.memory import StepMemory
from trainer.planning.traffic import StepTraffic


@dataclass(frozen=True)
class Phase:
    """The steps between two freezes, on the rank that holds most."""

    frozen_units: int
    first_step: int
    steps: int
    trained_parameters: int
    micro_batch: int
    accumulation: int
    memory: StepMemory
    memory_total: int
    """`memory.total`, bytes on the device."""
    optimizer_bytes: int
    """Masters and moments as the run logs them, in its `optimizer_bytes`."""
    flops_per_image: int
    """Matrix products, forward and backward."""
    relative_cost: float
    """FLOPs of a step over those of a step in which nothing is frozen."""
    traffic: StepTraffic
    largest_micro_batch: int | None
    """That fits in the memory asked about, of those that divide a rank's share; None if none does, or none was."""


@dataclass(frozen=True)
class DataFit:
    """How the data go into the run."""

    samples: int
    shards: int | None
    """None where the data are not there to be looked at."""
    steps_per_epoch: int
    left_out: int
    """Samples that an epoch leaves out, other ones each time, because they fill no global batch."""
    lanes: int | None
    """None for a pipe, whose samples come as they come."""
    samples_per_lane: int | None
    world_sizes: list[int]
    """Numbers of ranks that the run can start or continue on."""


@dataclass(frozen=True)
class StageNeeds:
    """What a rank would hold and send under a ZeRO stage, all other keys as they are, before anything is frozen."""

    zero_stage: int
    optimizer_bytes: int
    memory_total: int
    sent_bytes_per_step: float


@dataclass(frozen=True)
class Plan:
    world_size: int
    global_batch: int
    zero_stage: int
    precision: str
    offload_optimizer: bool
    memory_budget: int | None
    parameters: int
    units: int
    total_steps: int
    freezes_by_measurement: bool
    """They are not known in advance then: the phases and the savings are those of a run in which none comes."""
    reference_bytes: int
    """Host memory of rank 0 that measuring keeps, 0 where nothing is measured."""
    flops_saving: float
    """Fraction of the run's FLOPs that freezing saves, against a run in which every unit trains throughout."""
    traffic_saving: float
    """Fraction of the bytes sent; 0 on one rank."""
    data: DataFit
    phases: list[Phase]
    zero_stages: list[StageNeeds]
