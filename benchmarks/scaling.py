"""`python -m benchmarks.scaling [--quick] [--only weak,loader,keys,traffic] [--corpus DIR] [--output PAGE]`

What a second rank costs: the time of a ViT-B step on two ranks against one, with the same images per rank, and what of
the difference is the machine's and what communication; what some keys of the ds_config change in it; and what a step
sends at every frozen count beside what the plan says. Prints markdown tables, with --output writes them as a page.
Takes about twenty minutes and 18 GB of memory on two cores that have nothing else to do; --quick shows in one, on a
tiny model, that everything works, with figures that mean nothing."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.corpus import make_corpus
from benchmarks.gemm import why_no_bf16
from benchmarks.pages import chosen_parts, command_parser, run_command
from benchmarks.scaling_ranks import Case
from benchmarks.scaling_tables import SMALL_BUCKETS, TARGET, TARGET_STAGES, Comparison, keys_section, weak_sections
from benchmarks.scaling_traffic import traffic_section
from benchmarks.tables import Section
from trainer.engine.ds_config import Precision
from trainer.model.config import ModelConfig

PARTS = ("weak", "loader", "keys", "traffic")
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Effort:
    """What is measured. The loader takes turns of several steps, of a smaller micro-batch therefore; the keys are
    compared on a smaller model, of which several engines fit beside one another."""

    case: Case
    loaded: Case
    keys: Case
    rounds: int
    """For the rows with a target."""
    few_rounds: int
    images: int


_VIT_BASE = Case("ViT-B", ModelConfig(), 16)
FULL = Effort(
    case=_VIT_BASE,
    loaded=replace(_VIT_BASE, micro_batch=4),
    keys=Case("ViT-S", ModelConfig(size="small"), 8),
    rounds=4,
    few_rounds=2,
    images=256,
)
_TINY = Case(
    "tiny",
    ModelConfig(
        size="tiny", image_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, stages=[0, 1, 2],
        scales=[2.0, 1.0, 0.5], decoder_dim=16, decoder_heads=2,
    ),
    2,
)  # fmt: skip
QUICK = Effort(case=_TINY, loaded=_TINY, keys=_TINY, rounds=1, few_rounds=1, images=48)


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("scaling", __doc__, quick="a tiny model, one round")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure, with commas; all: %(default)s")
    parser.add_argument("--corpus", type=Path, help="folder of class folders of images (default: photographs, fetched)")
    return run_command(parser, argv, "What a second rank costs", _chosen_sections)


def _chosen_sections(arguments: argparse.Namespace) -> Iterator[Section]:
    effort = QUICK if arguments.quick else FULL
    return sections(effort, chosen_parts(arguments.only, PARTS), arguments.corpus)


def sections(effort: Effort, parts: list[str], source: Path | None) -> Iterator[Section]:
    """Each as soon as it is measured."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        comparisons, notes = [], []
        if "weak" in parts:
            obstacle = why_no_bf16()
            notes = [obstacle] if obstacle else []
            precisions: list[Precision] = ["fp32"] if obstacle else ["bf16", "fp32"]
            comparisons = [_comparison(effort, stage, precision) for precision in precisions for stage in STAGES]
        if "loader" in parts:
            shards = make_corpus(source, effort.images, Path(folder)).shards
            name = f"ZeRO-2 fp32, micro-batch {effort.loaded.micro_batch}"
            made = replace(effort.loaded, name=name, stage=2)
            loaded = replace(made, name=f"{name}, loader on", shards=shards)
            comparisons += [Comparison((case,), effort.few_rounds) for case in (made, loaded)]
        if comparisons:
            yield from weak_sections(effort.case, comparisons, notes)
        if "keys" in parts:
            yield keys_section(effort.keys, effort.few_rounds)
        if "traffic" in parts:
            yield traffic_section(replace(effort.case, micro_batch=1))


def _comparison(effort: Effort, stage: int, precision: Precision) -> Comparison:
    """One rank with the trainer's defaults against two with them, and where there is a target, with small buckets."""
    case = replace(effort.case, name=f"ZeRO-{stage} {precision}", stage=stage, precision=precision)
    if stage not in TARGET_STAGES:
        return Comparison((case,), effort.few_rounds)
    small = replace(case, name=f"{case.name}, reduce_bucket_size 5e6", zero=SMALL_BUCKETS)
    return Comparison(
        (replace(case, name=f"{case.name}, reduce_bucket_size 5e7 (default)"), small), effort.rounds, TARGET
    )


if __name__ == "__main__":
    sys.exit(main())
