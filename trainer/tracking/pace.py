"""Who keeps the others waiting: each rank's own time for a step, told by machine at every log line.

Ranks that train together take the same time for a step, the slowest one's, so that says nothing. What differs is how
long each waits for its data and how long its device is in the forward pass, before gradients are exchanged. (Under
ZeRO-3 the forward pass gathers weights and so waits for others itself: there a slow rank shows less.)
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

BEHIND = 1.25
"""A rank that takes so many times as long as the median is named,"""
WORTH_TELLING = 0.05
"""unless that is less than this part of a step."""
MOST_NAMED = 3


class DeviceTimer:
    """Adds up how long the device takes for the blocks in `measuring`. Waits for it only in `read`."""

    def __init__(self, device: torch.device):
        self._on_host = device.type == "cpu"
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    @contextmanager
    def measuring(self) -> Iterator[None]:
        if self._on_host:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
            return
        first, last = (get_accelerator().Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._events.append((first, last))

    def read(self) -> float:
        """Seconds since the last call. Call it where the host has waited for the device anyway."""
        for first, last in self._events:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1000
        seconds, self._seconds, self._events = self._seconds, 0.0, []
        return seconds


def gather_rows(values: list[float], device: torch.device) -> list[list[float]]:
    """Every rank's `values`, by rank. Collective."""
    mine = torch.tensor(values, dtype=torch.float64, device=device)
    rows = torch.empty(dist.get_world_size() * len(values), dtype=torch.float64, device=device)
    dist.all_gather_into_tensor(rows, mine)
    return rows.view(-1, len(values)).tolist()


def by_node(hosts: list[str], forward: list[float], waits: list[float], images_per_second: float) -> list[dict]:
    """One entry a machine, in the order of their ranks: its share of the images, and its ranks' largest times in
    seconds per step. `hosts`, `forward` and `waits` are by rank."""
    nodes = []
    for host in dict.fromkeys(hosts):
        ranks = [rank for rank, name in enumerate(hosts) if name == host]
        nodes.append({
            "node": host,
            "ranks": len(ranks),
            "images_per_second": images_per_second * len(ranks) / len(hosts),
            "forward_seconds": max(forward[rank] for rank in ranks),
            "data_wait_seconds": max(waits[rank] for rank in ranks),
        })  # fmt: skip
    return nodes


def stragglers(hosts: list[str], forward: list[float], waits: list[float], step_seconds: float) -> list[dict]:
    """The ranks that take notably longer than the median in one of the two, the worst first; times in seconds per
    step."""
    found = []
    for what, seconds in (("forward", forward), ("data", waits)):
        usual = statistics.median_low(seconds)
        for rank, own in enumerate(seconds):
            if own > BEHIND * usual and own - usual > WORTH_TELLING * step_seconds:
                found.append({"rank": rank, "node": hosts[rank], "in": what, "seconds": own, "median": usual})
    return sorted(found, key=lambda entry: entry["median"] - entry["seconds"])


def describe_stragglers(found: list[dict]) -> str:
    """One line for a person."""
    words = {"forward": "in the forward pass", "data": "waiting for data"}
    told = [
        f"rank {entry['rank']} on {entry['node']} takes {entry['seconds']:.3g} s a step {words[entry['in']]}, "
        f"{entry['median']:.3g} s at the median"
        for entry in found[:MOST_NAMED]
    ]
    more = f"; and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f"held up by {'; '.join(told)}{more}"
