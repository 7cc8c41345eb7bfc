"""Judges the checkpoints of trials that have not been judged yet."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from studies.judge import Judge
from studies.pretraining import checkpoint, seconds_until, untrained
from studies.results import Judged, read_judged, write_judged
from studies.runner import Job
from studies.trials import Trial
from trainer.checkpoint.manifest import list_checkpoints, step_of
from trainer.data.shard_index import ShardIndex
from trainer.pretrained import load_pretrained

CURVE_BEGINS = 0.5
"""Share of a run from which on its checkpoints are judged. The network that it began with is, too."""


def judge_missing(trials: Sequence[Trial], runs: Sequence[Job], shards: Path, folder: Path) -> None:
    """Writes a result file for each trial whose run has ended; the others are left out. What is fine-tuned comes
    first."""
    judge = None
    ended = [trial for trial, run in zip(trials, runs, strict=True) if run.is_done]
    for trial, step in sorted(_missing(ended, folder), key=lambda found: found[1] not in found[0].finetuned_at):
        judge = judge or Judge(ShardIndex.open(shards, "train"), ShardIndex.open(shards, "validation"))
        weights = load_pretrained(checkpoint(folder, trial, step)) if step else untrained(trial)
        accuracy = judge.weights(weights)
        judged = Judged(accuracy.knn, accuracy.linear, seconds_until(folder / trial.name, step))
        write_judged(folder, trial, read_judged(folder, trial) | {step: judged})
        print(f"{trial.name}, step {step}: {accuracy}", flush=True)


def _missing(trials: Iterable[Trial], folder: Path) -> Iterator[tuple[Trial, int]]:
    for trial in trials:
        judged = read_judged(folder, trial)
        there = {step_of(directory) for directory in list_checkpoints(folder / trial.name / "checkpoints")}
        curve = {0, *(step for step in there if step >= CURVE_BEGINS * trial.steps)}
        wanted = curve if trial.has_curve else {trial.steps}
        yield from ((trial, step) for step in sorted(wanted - judged.keys()))
