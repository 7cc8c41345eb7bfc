"""Damaged samples that others stood in for: each told while they are few, all of them counted."""

import logging
from typing import Any

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)

_TOLD = 10  # each on its own up to here, then every hundredth


class Substitutions:
    """Counts over all ranks and over the whole life of a run."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        """`events`: what metrics.jsonl holds of the run so far, on one rank; nothing on the others."""
        counts = [event.get("substituted_samples", 0) for event in events if event["event"] == "step"]
        self._count = counts[-1] if counts else 0
        self._here = 0

    def add(self, substituted: list[str]) -> None:
        """`substituted`: one line for each, of a micro-batch of this rank."""
        for line in substituted:
            self._count += 1
            self._here += 1
            if self._here <= _TOLD or self._here % 100 == 0:
                log.warning("damaged sample no. %d of this rank: %s", self._here, line)

    def total(self, device: torch.device) -> int:
        """Collective."""
        tensor = torch.tensor(self._count, dtype=torch.int64, device=device)
        dist.all_reduce(tensor)
        return int(tensor)
