"""What was found: accuracies beside costs, read from the result files, one for each trial."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from studies.continuations import Continuation
from studies.cost import flops, freezes_of
from studies.trials import Trial
from trainer.files import write_text

MEASURES = {"knn": "k-NN", "linear": "linear probe", "finetune": "fine-tuning"}


@dataclass(frozen=True)
class Judged:
    """How good a checkpoint is: shares of the held-out images, between 0 and 1, by `MEASURES`. `finetune` is None where
    nobody fine-tuned it. `seconds`: wall time of the training up to there."""

    knn: float
    linear: float
    seconds: float
    finetune: float | None = None


@dataclass(frozen=True)
class Point:
    """A checkpoint of a trial: `steps` taken of its schedule, what they cost in FLOPs, how good it is."""

    trial: Trial
    steps: int
    cost: int
    judged: Judged

    @property
    def is_last(self) -> bool:
        """Of a run that went to its end."""
        return self.steps == self.trial.steps

    def accuracy(self, measure: str) -> float | None:
        value: float | None = getattr(self.judged, measure)
        return value


def result_file(folder: Path, trial: Trial | Continuation) -> Path:
    return folder / f"{trial.name}.json"


def read_judged(folder: Path, trial: Trial | Continuation) -> dict[int, Judged]:
    """By step, of those checkpoints that were judged."""
    path = result_file(folder, trial)
    judged = json.loads(path.read_text())["judged"] if path.is_file() else {}
    return {int(step): Judged(**values) for step, values in judged.items()}


def write_judged(folder: Path, trial: Trial | Continuation, judged: dict[int, Judged]) -> None:
    content = asdict(trial) | {"judged": {step: asdict(judged[step]) for step in sorted(judged)}}
    write_text(result_file(folder, trial), json.dumps(content, indent=1) + "\n")


def read_points(folder: Path, trials: Iterable[Trial]) -> list[Point]:
    """All that was judged, by trial and step."""
    points = []
    for trial in trials:
        freezes = None if trial.is_planned else freezes_of(folder / trial.name)
        points += [
            Point(trial, step, flops(trial, step, freezes), judged)
            for step, judged in sorted(read_judged(folder, trial).items())
        ]
    return points


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds; of one seed nobody knows the spread."""
    return mean(values), stdev(values) if len(values) > 1 else None
