"""One training, interrupted and damaged again and again until it is done, and what became of it."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.launch.small_recipe import small_recipe
from tests.soak.attempt import START_SECONDS, Attempt, Layout
from tests.soak.compare import Difference, compare
from tests.soak.faults import DAMAGE, INTERRUPTIONS, Interruption, whole_checkpoints
from trainer.tracking.metrics import read_metrics

RECIPE = small_recipe(train={"epochs": 4}, checkpoint={"every_steps": 4})
LAYOUTS = [Layout(ranks, stage) for ranks in (1, 2, 4) for stage in (0, 1, 2, 3)]
MOVING_REFERENCE = Layout(2, 2)
LOSS_TOLERANCE = 1e-4
"""Relative, for lives that change their layout. Sums in another order differ in the last bit; Adam makes up to a few
1e-4 of a weight of that where the true gradient is near zero, and 70 steps pass it on to the losses."""


@dataclass
class Injected:
    """One thing that was done to a life; `trouble` says what was wrong afterwards, empty = survived."""

    kind: str
    moved: bool  # the life changed its layout
    trouble: str = ""
    difference: Difference | None = None  # of the life that it was done to, at its end


@dataclass
class Life:
    """`moving`: every attempt has another layout. Otherwise all have `layout`, and the end is to be the same bits."""

    run: Path
    reference: Path
    layout: Layout
    moving: bool
    seed: str
    recipe: Path
    shards: Path
    say: Callable[[str], None]
    deadline: float  # time.monotonic(); once past it, nothing is injected any more
    injected: list[Injected] = field(default_factory=list)
    spoiled: set[int] = field(default_factory=set)  # steps whose checkpoints were damaged here, and not lost by the run
    attempts: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def live(self, interruptions: int) -> list[Injected]:
        """Run to the end. Returns what was injected, with what was wrong about it."""
        events = read_metrics(self.reference)
        total = max(event["step"] for event in events if event["event"] == "step")
        freezes = [event["step"] for event in events if event["event"] == "freeze"]
        for number, target in enumerate(list(self._targets(total, interruptions))):
            self.rng = random.Random(f"{self.seed} {number}")  # what a run makes of one fault does not change the next
            if time.monotonic() > self.deadline or self._last_step() >= total:
                break
            self._interrupt(self.rng.choice(INTERRUPTIONS), target, freezes)
            self._damage()
            self._move()
        self._finish(total)
        return self.injected

    def _targets(self, total: int, interruptions: int) -> Iterator[int]:
        """Steps to interrupt at, spread over the run."""
        for number in range(interruptions):
            yield int(total * (number + self.rng.uniform(0.2, 1)) / (interruptions + 0.5))

    def _interrupt(self, interruption: Interruption, target: int, freezes: list[int]) -> None:
        expected = self._expected_resume()
        target = max(target, self._last_step() + 1)
        if interruption.moment == "at a freeze":
            target = next((step for step in freezes if step >= target), target)
        attempt = self._start(through_launcher=interruption.by_launcher)
        began = self._wait_for_moment(attempt, interruption, target)
        if began:
            interruption.strike(attempt, self.rng)
        ended = attempt.wait()
        trouble = self._check_resume(attempt, expected)
        if began:
            trouble = trouble or self._check_end(attempt, interruption, ended)
            self._record(interruption.name, trouble, f"at step {self._last_step()}, {self.layout}")
        elif trouble or set(attempt.codes()) != {0}:
            self._record("an undisturbed attempt", trouble or f"exit codes {attempt.codes()}, see {attempt.log}", "")

    def _wait_for_moment(self, attempt: Attempt, interruption: Interruption, target: int) -> bool:
        if interruption.moment == "while starting":
            return not attempt.wait_for(lambda: False, self.rng.uniform(0, 10))
        if not attempt.wait_for(lambda: self._last_step() >= target, START_SECONDS):
            return False
        all_alive = len(attempt.ranks()) == self.layout.ranks
        if interruption.moment == "inside a save":
            return all_alive and attempt.wait_for(self._is_saving, START_SECONDS)
        time.sleep(self.rng.uniform(0, 0.1))  # anywhere inside a step
        return all_alive

    def _check_end(self, attempt: Attempt, interruption: Interruption, ended: bool) -> str:
        if not ended:
            return f"processes did not end, see {attempt.log}"
        whole = whole_checkpoints(self.run)
        newest = _step(whole[-1]) if whole else 0
        events = read_metrics(self.run)
        announced = {event["step"] for event in events if event["event"] == "checkpoint"} - self.spoiled
        if max(announced, default=0) > newest:
            return f"the checkpoint of step {max(announced)} is lost; the newest whole one is of {newest}"
        if interruption.graceful and newest != self._last_step():
            return f"left at step {self._last_step()} without saving it; the newest checkpoint is of {newest}"
        return self._check_farewell(attempt, interruption)

    def _check_farewell(self, attempt: Attempt, interruption: Interruption) -> str:
        """Exit codes (0 = it was done before it was hurt; the launcher has codes of its own) and the last words."""
        if attempt.through_launcher or interruption.code is None or set(attempt.codes()) == {0}:
            return ""
        if set(attempt.codes()) != {interruption.code}:
            return f"exit codes {attempt.codes()} instead of {interruption.code}, see {attempt.log}"
        if interruption.says not in attempt.log.read_text(errors="replace"):
            return f"did not say {interruption.says!r}, see {attempt.log}"
        return ""

    def _check_resume(self, attempt: Attempt, expected: int) -> str:
        at = attempt.resumed_at()
        if at is None or at == expected:
            return ""
        return f"resumed at step {at} where {expected} was the newest whole one, see {attempt.log}"

    def _damage(self) -> None:
        """Spoil the newest checkpoint, as long as there is an earlier one to fall back to."""
        whole = whole_checkpoints(self.run)
        kind, wanted = self.rng.choice(sorted(DAMAGE)), self.rng.random() < 0.5
        if wanted and len(whole) > 1:
            DAMAGE[kind](whole[-1], self.rng)
            if whole[-1] not in whole_checkpoints(self.run):
                self.spoiled.add(_step(whole[-1]))
            self._record(kind, "", whole[-1].name)

    def _move(self) -> None:
        if self.moving:
            before, self.layout = self.layout, self.rng.choice([x for x in LAYOUTS if x != self.layout])
            if before.ranks != self.layout.ranks:
                self._record("another number of ranks", "", f"{before.ranks} → {self.layout.ranks}")
            if before.stage != self.layout.stage:
                self._record("another ZeRO stage", "", f"{before.stage} → {self.layout.stage}")

    def _finish(self, total: int) -> None:
        """Let it run to its end, compare, and hold all that was injected against the result."""
        expected = self._expected_resume()
        attempt = self._start(through_launcher=False)
        ended = attempt.wait_for(lambda: False, START_SECONDS) or attempt.wait()
        trouble = self._check_resume(attempt, expected)
        if not ended or set(attempt.codes()) != {0} or self._last_step() != total:
            trouble = trouble or f"did not finish: exit codes {attempt.codes()}, see {attempt.log}"
        difference = compare(self.run, self.reference) if not trouble else Difference(0, 0, 0, trouble)
        trouble = difference.trouble
        if not trouble and not self.moving and not difference.same_bits:
            trouble = f"not the same bits as without interruptions: {difference}"
        if not trouble and self.moving and difference.loss > LOSS_TOLERANCE:
            trouble = f"losses differ by {difference.loss:.1e}"
        for injected in self.injected:
            injected.difference = difference
            injected.trouble = injected.trouble or trouble
        if trouble and not self.injected:
            self._record("an undisturbed attempt", trouble, "")
        moments = f"loss {difference.loss:.1e}, weights {difference.weight:.1e}, moments {difference.moment:.1e}"
        self.say(f"  done in {self.attempts} attempts: " + (trouble or f"differences: {moments}"))

    def _start(self, through_launcher: bool) -> Attempt:
        self.attempts += 1
        return Attempt(self.run, self.attempts, self.layout, self.recipe, self.shards, through_launcher)

    def _is_saving(self) -> bool:
        return any((self.run / "checkpoints").glob(".step_*.tmp"))

    def _expected_resume(self) -> int:
        whole = whole_checkpoints(self.run)
        return _step(whole[-1]) if whole else 0

    def _last_step(self) -> int:
        return max((event["step"] for event in read_metrics(self.run) if event["event"] == "step"), default=0)

    def _record(self, kind: str, trouble: str, detail: str) -> None:
        self.injected.append(Injected(kind, self.moving, trouble))
        self.say(f"  {kind}{f' ({detail})' if detail else ''}" + (f": {trouble.upper()}" if trouble else ""))


def undisturbed(run: Path, layout: Layout, recipe: Path, shards: Path) -> None:
    """A reference: one attempt without any interruption. Raises RuntimeError if even that fails."""
    attempt = Attempt(run, 1, layout, recipe, shards, through_launcher=False)
    attempt.wait_for(lambda: False, START_SECONDS)
    if not attempt.wait() or set(attempt.codes()) != {0}:
        raise RuntimeError(f"a run without any fault failed: see {attempt.log}")


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))
