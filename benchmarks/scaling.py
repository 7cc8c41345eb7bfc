"""`python -m benchmarks.scaling [--quick] [--only weak,loader,keys,traffic] [--corpus DIR] [--output PAGE]`

What a second rank costs: the time of a ViT-B step on two ranks against one, with the same images per rank, and what of
the difference is the machine's and what communication; what some keys of the ds_config change in it; and what a step
sends at every frozen count beside what the plan says. Prints markdown tables, with --output writes them as a page.
Takes about ten minutes and 14 GB of memory on two cores that have nothing else to do; --quick shows in one, on a tiny
model, that everything works, with figures that mean nothing."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.corpus import make_corpus
from benchmarks.gemm import why_no_bf16
from benchmarks.machine import describe_machine
from benchmarks.scaling_ranks import Case
from benchmarks.scaling_tables import keys_section, weak_sections
from benchmarks.scaling_traffic import traffic_section
from benchmarks.tables import Section
from trainer.engine.ds_config import Precision
from trainer.errors import BadInput
from trainer.files import write_text
from trainer.model.config import ModelConfig

PARTS = ("weak", "loader", "keys", "traffic")
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Effort:
    """What is measured; the keys are compared on a smaller model, of which several engines fit beside one another."""

    case: Case
    keys: Case
    rounds: int
    images: int


_BUCKETS = {"reduce_bucket_size": 5_000_000}
"""As in ds_configs/zero2_cpu.json."""
FULL = Effort(
    case=Case("ViT-B", ModelConfig(), 16, zero=_BUCKETS),
    keys=Case("ViT-S", ModelConfig(size="small"), 16, zero=_BUCKETS),
    rounds=2,
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
QUICK = Effort(case=_TINY, keys=_TINY, rounds=1, images=48)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for input that cannot be used (one line says what and how to mend it)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure, with commas; all: %(default)s")
    parser.add_argument("--corpus", type=Path, help="folder of class folders of images (default: photographs, fetched)")
    parser.add_argument("--output", type=Path, help="write the page here as well")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output and not arguments.output.parent.is_dir():
            raise BadInput(f"--output {arguments.output}: there is no folder {arguments.output.parent}; make it")
        page = run(QUICK if arguments.quick else FULL, _parts(arguments.only), arguments.corpus)
    except BadInput as error:
        print(f"benchmarks.scaling: {error}", file=sys.stderr)
        return 2
    if arguments.output:
        write_text(arguments.output, page)
    return 0


def run(effort: Effort, parts: list[str], source: Path | None) -> str:
    """Measure and print section after section; returns the whole page."""
    pages = [f"# What a second rank costs\n\n{describe_machine()}\n"]
    print(pages[0], flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for section in _sections(effort, parts, source, Path(folder)):
            pages.append(section.markdown())
            print(pages[-1], flush=True)
    return "\n".join(pages)


def _sections(effort: Effort, parts: list[str], source: Path | None, work: Path) -> Iterator[Section]:
    cases, notes = [], []
    if "weak" in parts:
        obstacle = why_no_bf16()
        notes = [obstacle] if obstacle else []
        precisions: list[Precision] = ["fp32"] if obstacle else ["bf16", "fp32"]
        cases = [
            replace(effort.case, name=f"ZeRO-{stage} {precision}", stage=stage, precision=precision)
            for precision in precisions
            for stage in STAGES
        ]
    if "loader" in parts:
        shards = make_corpus(source, effort.images, work).shards
        cases.append(replace(effort.case, name="ZeRO-2 fp32, loader on", stage=2, shards=shards))
    if cases:
        yield from weak_sections(effort.case.name, cases, effort.rounds, notes)
    if "keys" in parts:
        yield keys_section(effort.keys, effort.rounds)
    if "traffic" in parts:
        yield traffic_section(replace(effort.case, micro_batch=1))


def _parts(only: str) -> list[str]:
    """Raises BadInput for a part that there is not."""
    parts = only.split(",")
    for part in parts:
        if part not in PARTS:
            raise BadInput(f"--only {only}: there is no part {part!r}; take some of {','.join(PARTS)}")
    return parts


if __name__ == "__main__":
    sys.exit(main())
