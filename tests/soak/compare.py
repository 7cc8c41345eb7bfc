"""Two trainings of one recipe: the same samples, the same losses, the same weights and moments?

The checkpoint files are read as the format says, with safetensors alone, and not by the trainer's own reader.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from trainer.tracking.metrics import read_metrics


@dataclass(frozen=True)
class Difference:
    """How far a training is from its reference. `trouble`, where not empty, is worse than any number."""

    loss: float  # largest relative difference of a stage's loss at any step
    weight: float  # largest absolute difference of an fp32 weight at the end
    moment: float  # largest absolute difference of an optimizer moment at the end
    trouble: str = ""

    @property
    def same_bits(self) -> bool:
        return not self.trouble and self.loss == self.weight == self.moment == 0


def compare(run: Path, reference: Path) -> Difference:
    """Compare a finished training with the uninterrupted one, step by step and at the end."""
    ours, theirs = losses(run), losses(reference)
    if ours.keys() != theirs.keys():
        return Difference(0, 0, 0, f"steps {sorted(ours.keys() ^ theirs.keys())} are logged in one run only")
    if wrong := [step for step, keys in sample_keys(reference).items() if sample_keys(run).get(step) != keys]:
        return Difference(0, 0, 0, f"step {wrong[0]} was fed other samples")
    loss = 0.0
    for step, values in theirs.items():
        for a, b in zip(ours[step], values, strict=True):
            if (a is None) != (b is None):
                return Difference(0, 0, 0, f"step {step} has other live stages")
            if a is not None and b is not None:
                loss = max(loss, abs(a - b) / abs(b))
    weights, moments = largest_differences(final_state(run), final_state(reference))
    return Difference(loss, weights, moments)


def losses(run: Path) -> dict[int, list[float | None]]:
    """Step → each stage's loss."""
    return {event["step"]: event["loss_stages"] for event in read_metrics(run) if event["event"] == "step"}


def sample_keys(run: Path) -> dict[int, list[str]]:
    """Step → the sorted keys that it was fed over all ranks, the last time that it was taken."""
    found: dict[int, tuple[str, list[str]]] = {}
    for file in sorted(run.with_name(f"{run.name}_keys").iterdir()):
        attempt = file.stem.partition("_")[0]
        for line in file.read_text().splitlines():
            try:
                step, keys = json.loads(line)
            except ValueError:  # cut short by a kill
                continue
            before = found.get(step, ("", []))
            found[step] = (attempt, [*(before[1] if before[0] == attempt else []), *keys])
    return {step: sorted(keys) for step, (_, keys) in found.items()}


def final_state(run: Path) -> dict[tuple[str, str], torch.Tensor]:
    """(kind, parameter) → the whole flattened tensor, put together from all ranks' files of the newest checkpoint."""
    pieces: dict[tuple[str, str], dict[int, torch.Tensor]] = defaultdict(dict)
    newest = max((run / "checkpoints").glob("step_*"))
    for path in newest.glob("rank_*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                kind, name, start = key.split(":")
                pieces[kind, name][int(start)] = file.get_tensor(key)
    return {key: torch.cat([parts[start] for start in sorted(parts)]) for key, parts in pieces.items()}


def largest_differences(ours: dict, theirs: dict) -> tuple[float, float]:
    """The largest absolute difference of the weights, and of the moments."""
    if ours.keys() != theirs.keys():
        return float("inf"), float("inf")
    apart = {key: float((ours[key] - theirs[key]).abs().nan_to_num(nan=float("inf")).max()) for key in theirs}
    weights, moments = ([d for (kind, _), d in apart.items() if (kind == "master") == of] for of in (True, False))
    return max(weights), max(moments, default=0.0)
