"""Trainings that are killed, damaged and moved for an hour, each compared with one that was left alone.

    python -m tests.soak --minutes 60 --seed 0          # two CPU cores, no GPU

A life is a whole training of a tiny ViT on photographs, through every freeze, with some six interruptions: signals and
kills of ranks and launchers at random moments, inside saves and freezes too; damaged checkpoint files in between. Half
the lives keep their number of ranks, ZeRO stage and precision, and have to end with the bits of the undisturbed run;
the others change them at every restart and have to end within a tolerance. After every restart the run has to continue
from the newest whole checkpoint, and each step has to be fed the same samples.

Prints what it does, and a table at the end. Exit codes: 0 all survived, 1 something was lost. The seed fixes what is
done and about when; the instant of a kill is the operating system's.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from data_tools.__main__ import main as data_tools
from tests.photographs import write_class_folders
from tests.soak.attempt import Layout
from tests.soak.life import LAYOUTS, MOVING_REFERENCE, RECIPE, Injected, Life, undisturbed
from tests.soak.table import summary, table


def main() -> int:
    arguments = parse_arguments()
    work = Path(tempfile.mkdtemp(prefix="soak_", dir=arguments.work))
    say(f"{work}: seed {arguments.seed}, {arguments.minutes:g} minutes")
    injected, lives = soak(work, arguments)
    print(f"\n{table(injected)}\n\n{summary(injected, lives, arguments.seed, arguments.minutes)}", flush=True)
    if any(event.trouble for event in injected):
        say(f"what was lost lies in {work}")
        return 1
    shutil.rmtree(work)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="begin no new life after this (default: 60)")
    parser.add_argument("--lives", type=int, default=sys.maxsize, help="… or after so many lives (default: no limit)")
    parser.add_argument("--interruptions", type=int, default=6, help="in each life (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="decides what is done to the runs (default: 0)")
    parser.add_argument("--work", type=Path, help="folder to work in (default: the system's for temporary files)")
    return parser.parse_args()


def soak(work: Path, arguments: argparse.Namespace) -> tuple[list[Injected], int]:
    """Lives until the time is up. Returns all that was injected, and the number of lives."""
    deadline = time.monotonic() + arguments.minutes * 60
    shards, recipe = make_shards(work), work / "recipe.yaml"
    recipe.write_text(RECIPE)
    injected: list[Injected] = []
    lives = 0
    while lives < arguments.lives and time.monotonic() < deadline:
        seed = f"{arguments.seed} {lives}"
        rng = random.Random(seed)
        moving = lives % 2 == 1
        layout = rng.choice(LAYOUTS)
        if not moving and rng.random() < 0.25:
            layout = replace(layout, precision="bf16")
        lives += 1
        say(f"life {lives}: {'from ' if moving else 'always '}{layout}")
        reference = reference_run(work, MOVING_REFERENCE if moving else layout, recipe, shards)
        life = Life(work / f"life_{lives}", reference, layout, moving, seed, recipe, shards, say, deadline)
        injected += life.live(arguments.interruptions)
    return injected, lives


def make_shards(work: Path) -> Path:
    photographs = write_class_folders(work / "photographs", per_class=25, width=160, height=120)
    shards = work / "shards"
    if data_tools(["imagefolder", "--input", str(photographs), "--output", str(shards), "--shards", "6"]):
        raise RuntimeError("the shards could not be made")
    return shards


def reference_run(work: Path, layout: Layout, recipe: Path, shards: Path) -> Path:
    """The undisturbed run of this layout, made when it is first asked for."""
    run = work / f"reference_{layout.ranks}_{layout.stage}_{layout.precision}"
    if not run.exists():
        undisturbed(run, layout, recipe, shards)
    return run


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
