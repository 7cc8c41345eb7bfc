"""Judges the checkpoints of trials that have not been judged yet."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from studies.judge import Judge
from studies.results import read_judged, write_judged
from studies.runner import is_done
from studies.trials import Trial, shortened
from trainer.checkpoint.manifest import directory_name, list_checkpoints, step_of
from trainer.data.shard_index import ShardIndex

CURVE_BEGINS = 0.5
"""Share of a run from which on its checkpoints are judged."""


def judge_missing(trials: Sequence[Trial], shards: Path, folder: Path) -> None:
    """Writes a result file for each trial that has ended; those that have not are left out. What the main contrast
    needs comes first."""
    judge = None
    for trial, step in sorted(_missing(trials, folder), key=lambda found: not _is_contrasted(*found)):
        judge = judge or Judge(ShardIndex.open(shards, "train"), ShardIndex.open(shards, "validation"))
        accuracy = judge.checkpoint(folder / trial.name / "checkpoints" / directory_name(step))
        write_judged(folder, trial, read_judged(folder, trial) | {step: accuracy})
        print(f"{trial.name}, step {step}: {accuracy}", flush=True)


def _missing(trials: Iterable[Trial], folder: Path) -> Iterator[tuple[Trial, int]]:
    for trial in trials:
        run, judged = folder / trial.name, read_judged(folder, trial)
        if is_done(run):
            steps = {step_of(directory) for directory in list_checkpoints(run / "checkpoints")}
            wanted = (
                {step for step in steps if step >= CURVE_BEGINS * trial.steps} if trial.has_curve else {trial.steps}
            )
            yield from ((trial, step) for step in sorted(wanted - judged.keys()))


def _is_contrasted(trial: Trial, step: int) -> bool:
    return step in (trial.steps, shortened(trial.steps))
