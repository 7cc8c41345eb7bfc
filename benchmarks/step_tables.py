"""The sections of `benchmarks.step`: the step, HOG alone, and what is left between the step and the limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks import step_contenders
from benchmarks.gemm import why_no_bf16
from benchmarks.plain_step import PlainHog
from benchmarks.rounds import Costs, ratio_text, take_turns
from benchmarks.step_contenders import Batch, Step, gemm_seconds_per_flop, make_batch, seconds_per_image
from benchmarks.step_profile import ATTENTION, MATMUL, attention_flops, seconds_by_kind
from benchmarks.tables import Section
from trainer.model.config import ModelConfig
from trainer.model.flops import step_flops
from trainer.model.hog import hog_targets
from trainer.model.localmim import LocalMIM

PLAIN, BY_HAND = "plain", "plain, HOG magnitude by hand"
BARE, UNSHARDED, ENGINE, ENGINE_BF16 = "ours, bare PyTorch", "ours, ZeRO-0", "ours, ZeRO-1", "ours, ZeRO-1, bf16"
GEMM, GEMM_BF16 = "GEMM", "GEMM, bf16"
PER_SCALE, OUR_HOG = "per scale and channel", "ours"
TARGETS = {UNSHARDED: "≥ 1.30, ≥ 85 %", ENGINE: "≥ 1.30, ≥ 85 %", ENGINE_BF16: "≥ 2.5 × fp32, ≥ 60 %"}


@dataclass(frozen=True)
class Measured:
    """What the later sections build on: the bare step and the first setting's rounds."""

    bare: Step
    batch: Batch
    threads: int
    costs: dict[str, Costs]


def step_section(
    config: ModelConfig, settings: Sequence[tuple[int, int]], rounds: int, folder: str
) -> tuple[Measured, Section]:
    """Every contender under every (threads, micro-batch), in turns with the matrix product. `folder`: for the rank."""
    step_contenders.join_one_rank(folder)
    model = LocalMIM(config)
    no_bf16 = why_no_bf16()
    steps = _steps(config, model, bf16=not no_bf16)
    flops = step_flops(config, 0).total
    measured, rows = [], []
    for threads, micro_batch in settings:
        torch.set_num_threads(threads)
        batch = make_batch(model, micro_batch)
        limits = {GEMM: gemm_seconds_per_flop(torch.float32)}
        if not no_bf16:
            limits[GEMM_BF16] = gemm_seconds_per_flop(torch.bfloat16)
        contenders = limits | {name: seconds_per_image(step, batch) for name, step in steps.items()}
        costs = take_turns(contenders, rounds)
        measured.append(Measured(steps[BARE], batch, threads, costs))
        rows += [step_row(name, threads, micro_batch, costs, flops) for name in steps]
        print(f"{threads} threads, micro-batch {micro_batch}: done", flush=True)
    gemm = ", ".join(f"{m.costs[GEMM].median_rate / 1e9:.0f} on {m.threads} threads" for m in measured)
    ceilings = ", ".join(f"{1 / _of_gemm(m.costs[PLAIN], m.costs[GEMM], flops):.2f}" for m in measured)
    remarks = [f"A step at the rate of the large product would be × plain, setting by setting: {ceilings}."]
    if no_bf16:
        remarks.append(f"{no_bf16} Where there are some, the targets are {TARGETS[ENGINE_BF16]} of theirs.")
    section = Section(
        title="The step",
        method=f"Forward, backward and AdamW in fp32, {flops / 1e9:.2f} GFLOP of matrix products an image as we count "
        f"them. Contenders take turns, {rounds} rounds; ratios are medians of the rounds' ratios with their quartiles. "
        f"*Of GEMM*: those FLOPs over the time, against a 1024×1024 product in the same round ({gemm} GFLOP/s). The "
        "plain step does a little more arithmetic for the same result (it embeds the masked patches); it is held to "
        "the same count. Its images are normalised beforehand at no cost to it.",
        header=["step", "threads", "micro-batch", "images/s", "× plain", "× our fp32", "of GEMM", "target"],
        rows=rows,
        remarks=remarks,
    )
    return measured[0], section


def hog_section(config: ModelConfig, images: int, rounds: int, measured: Measured) -> Section:
    """All targets of a step, ours and one scale and channel at a time, on one thread."""
    torch.set_num_threads(1)
    batch = make_batch(LocalMIM(config), images)
    plain = [PlainHog(window, config.hog_bins) for window in config.hog_windows]

    def one_by_one(batch: Batch, *, by_hand: bool) -> None:
        for hog in plain:
            hog.by_hand = by_hand
            hog(batch.pixels)

    def together(batch: Batch) -> None:
        hog_targets(batch.pixels, config.hog_windows, config.hog_bins)

    contenders: dict[str, Step] = {
        PER_SCALE: partial(one_by_one, by_hand=False),
        "the same, magnitude by hand": partial(one_by_one, by_hand=True),
        OUR_HOG: together,
    }
    costs = take_turns({name: seconds_per_image(hog, batch) for name, hog in contenders.items()}, 3 * rounds)
    return Section(
        title="HOG targets",
        method=f"{len(plain)} scales of 3 channels, {images} images, one thread. *Of the step*: against the step of "
        f"“{ENGINE}” with {measured.threads} threads and micro-batch {len(measured.batch.images)}.",
        header=["targets", "ms an image", f"× {PER_SCALE}", "of the step", "target"],
        rows=hog_rows(costs, measured.costs[ENGINE]),
    )


def hog_rows(costs: Mapping[str, Costs], step: Costs) -> list[list[str]]:
    """`costs` and `step`: seconds per image."""
    return [
        [
            name,
            f"{1e3 / cost.median_rate:.2f}",
            ratio_text(cost, costs[PER_SCALE]),
            f"{step.median_rate / cost.median_rate:.1%}",
            "≥ 9, ≤ 3 %" if name == OUR_HOG else "",
        ]
        for name, cost in costs.items()
    ]


def left_section(config: ModelConfig, measured: Measured) -> Section:
    """The ZeRO-1 step by kind of work, and how much of each the matrix product's rate would not need."""
    torch.set_num_threads(measured.threads)
    seconds, whole = seconds_by_kind(lambda: measured.bare(measured.batch))
    flops = step_flops(config, 0).total
    limit = _of_gemm(measured.costs[ENGINE], measured.costs[GEMM], flops)
    needed = {ATTENTION: attention_flops(config) / flops * limit}
    needed[MATMUL] = limit - needed[ATTENTION]
    return Section(
        title="What is left",
        method=f"The step of “{ENGINE}” with {measured.threads} threads and micro-batch {len(measured.batch.images)}. "
        "*Share*: from a profile of the same step as bare PyTorch; DeepSpeed is the difference between the two. "
        "*Needed*: what the FLOPs would take at the rate of the large matrix product. *Left*: the difference, in "
        "points of the step.",
        header=["kind of work", "share", "needed", "left"],
        rows=left_rows({kind: time / whole for kind, time in seconds.items()}, measured.costs, needed),
    )


def left_rows(of_bare: Mapping[str, float], costs: Mapping[str, Costs], needed: Mapping[str, float]) -> list[list[str]]:
    """By falling share, then DeepSpeed's, then all. `of_bare`: by kind of work, its share of the bare step; `needed`:
    by kind of work, as a share of the step through the engine."""
    bare_of_engine = costs[ENGINE].times_faster_than(costs[BARE])[0]  # the bare step's time over the engine's
    shares = {kind: share * bare_of_engine for kind, share in sorted(of_bare.items(), key=lambda item: -item[1])}
    shares["DeepSpeed"] = 1 - bare_of_engine
    rows = [_left_row(kind, share, needed.get(kind, 0.0)) for kind, share in shares.items()]
    return [*rows, _left_row("all", sum(shares.values()), sum(needed.values()))]


def _steps(config: ModelConfig, model: LocalMIM, *, bf16: bool) -> dict[str, Step]:
    weights = model.state_dict()
    plain, by_hand = step_contenders.plain_steps(config, weights)
    steps = {
        PLAIN: plain,
        BY_HAND: by_hand,
        BARE: step_contenders.bare_step(config, weights),
        UNSHARDED: step_contenders.engine_step(config, weights, 0, "fp32"),
        ENGINE: step_contenders.engine_step(config, weights, 1, "fp32"),
    }
    if bf16:
        steps[ENGINE_BF16] = step_contenders.engine_step(config, weights, 1, "bf16")
    return steps


def step_row(name: str, threads: int, micro_batch: int, costs: Mapping[str, Costs], flops: int) -> list[str]:
    """`costs`: seconds per image, those of the products per FLOP; `flops`: of an image's step."""
    cost = costs[name]
    gemm = costs[GEMM_BF16 if name == ENGINE_BF16 else GEMM]
    return [
        name,
        str(threads),
        str(micro_batch),
        f"{cost.median_rate:.2f}",
        ratio_text(cost, costs[PLAIN]),
        ratio_text(cost, costs[ENGINE]),
        f"{_of_gemm(cost, gemm, flops):.1%}",
        TARGETS.get(name, ""),
    ]


def _of_gemm(cost: Costs, gemm: Costs, flops: int) -> float:
    """The rate of a step's matrix products over that of the large one, the median of the rounds."""
    return cost.times_faster_than(Costs(gemm.seconds * flops))[0]


def _left_row(kind: str, share: float, needed: float) -> list[str]:
    return [kind, f"{share:.1%}", f"{needed:.1%}" if needed else "", f"{100 * (share - needed):.1f}"]
