"""How often ZeRO-3 gathers each parameter in a micro-batch: DeepSpeed's fetching, prefetching and releasing, replayed.

A module's parameters are gathered when it is entered, unless they are whole already; the next ones in order are
gathered ahead of use, as far as the prefetch bucket reaches. When a module ends, its parameters are released, except
those that are needed again soon or that the prefetcher has already counted on. A model smaller than half the reuse
distance therefore gathers every parameter once; a larger one gathers those of its early layers twice, but frozen ones,
which the backward does not visit, always once. Follows DeepSpeed 0.19.8, `PartitionedParameterCoordinator`.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from trainer.planning.parameter_use import ParameterUse


@dataclass(frozen=True)
class Zero3Limits:
    """The keys ``zero_optimization.stage3_…`` that decide what is gathered, in elements, with DeepSpeed's defaults."""

    param_persistence_threshold: int = 100_000
    """Parameters up to this size stay whole on every rank between two updates."""
    model_persistence_threshold: int = 2**63 - 1
    """But only so many elements in all, in the order of the model."""
    prefetch_bucket_size: int = 50_000_000
    max_live_parameters: int = 1_000_000_000
    """Nothing is gathered ahead of use beyond this."""
    max_reuse_distance: int = 1_000_000_000
    """A parameter that is needed again before so many elements were passed is not released."""

    @classmethod
    def of(cls, zero: Mapping[str, Any]) -> "Zero3Limits":
        """From the section `zero_optimization` of a ds_config."""
        given = {key.removeprefix("stage3_"): value for key, value in zero.items()}
        return cls(**{key: int(given[key]) for key in cls.__dataclass_fields__ if key in given})


def persistent_parameters(sizes: Mapping[str, int], limits: Zero3Limits) -> set[str]:
    """Names of the parameters that stay whole; they are gathered anew after every update, frozen ones as well."""
    names: set[str] = set()
    kept = 0
    for name, size in sizes.items():
        if size <= limits.param_persistence_threshold and kept + size <= limits.model_persistence_threshold:
            names.add(name)
            kept += size
    return names


def gathers_per_micro_batch(use: ParameterUse, limits: Zero3Limits) -> Counter[str]:
    """How often each parameter that is not persistent is gathered in one forward and backward."""
    return _replay(use, limits).gathers


def peak_gathered_elements(use: ParameterUse, limits: Zero3Limits) -> int:
    """The most elements that are whole at one time, besides persistent ones."""
    return _replay(use, limits).peak_elements


def _replay(use: ParameterUse, limits: Zero3Limits) -> "_Replay":
    """A micro-batch of a run that has settled: DeepSpeed knows the order of the modules from the second one on."""
    replay = _Replay(use, limits)
    leaves = deque(use.leaves)
    for step in range(len(use.order)):
        replay.enter(step)
        while leaves and leaves[0].position == step + 1:
            replay.leave(leaves.popleft().parameters, step + 1)
    return replay


class _Replay:
    """The state of DeepSpeed's coordinator during one micro-batch; a step is a module entered."""

    def __init__(self, use: ParameterUse, limits: Zero3Limits) -> None:
        self._use, self._limits = use, limits
        self._persistent = persistent_parameters(use.sizes, limits)
        self._whole = set(self._persistent)
        self._gathered_elements = 0  # DeepSpeed's own count of what is whole, persistent ones not included
        self._queue = deque((step, name) for step, names in enumerate(use.order) for name in names)
        self._fetched_for: dict[str, int] = {}
        self._passed = [0, *accumulate(sum(use.sizes[name] for name in names) for names in use.order)]
        self._steps_of: dict[str, list[int]] = {}
        for step, name in self._queue:
            self._steps_of.setdefault(name, []).append(step)
        self.gathers: Counter[str] = Counter()
        self.peak_elements = 0

    def enter(self, step: int) -> None:
        self._gather(self._use.order[step])
        waiting = {name for name in self._use.order[step] if self._fetched_for.get(name, -1) < step}
        while waiting:  # not yet taken off the queue by an earlier prefetch
            last_use, name = self._queue.popleft()
            self._fetched_for[name] = last_use
            waiting.discard(name)
        self._prefetch()

    def leave(self, parameters: tuple[str, ...], step: int) -> None:
        for name in parameters:
            if name in self._whole - self._persistent and not self._is_kept(name, step):
                self._whole.discard(name)
                self._gathered_elements -= self._use.sizes[name]

    def _is_kept(self, name: str, step: int) -> bool:
        """Whether the prefetcher has passed a later use, or one begins within the reuse distance."""
        if self._fetched_for[name] > step:
            return True
        following = next((later for later in self._steps_of[name] if later >= step), None)
        return following is not None and self._passed[following] - self._passed[step] < self._limits.max_reuse_distance

    def _prefetch(self) -> None:
        room = min(self._limits.max_live_parameters - self._gathered_elements, self._limits.prefetch_bucket_size)
        ahead: dict[str, None] = {}
        elements = 0
        while self._queue and elements < room:
            step, name = self._queue.popleft()
            self._fetched_for[name] = max(step, self._fetched_for.get(name, -1))
            if name not in self._whole and name not in ahead:
                ahead[name] = None
                elements += self._use.sizes[name]
        self._gather(tuple(ahead))

    def _gather(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self._whole:
                self._whole.add(name)
                self._gathered_elements += self._use.sizes[name]
                self.gathers[name] += 1
        self.peak_elements = max(self.peak_elements, self._gathered_elements)
