"""What rank 0 prints: plain log lines with an ETA, the same on a terminal and in a log file."""

import time
from typing import Any

from trainer.tracking.rank_log import note, tell


def duration(seconds: float) -> str:
    """3725 → '1 h 02 min', 65 → '1 min 05 s', 4.2 → '4 s'."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s"


class Console:
    """Silent on every rank but 0; what it would have said is in each rank's own log."""

    def __init__(self, rank: int):
        self._speaks = rank == 0

    def say(self, text: str) -> None:
        note(text)
        if self._speaks:
            tell(f"[{time.strftime('%H:%M:%S')}] {text}")

    def step(self, event: dict[str, Any], total_steps: int, eta_seconds: float) -> None:
        wait = event["data_wait_seconds"] / event["step_seconds"]
        self.say(
            f"step {event['step']:>{len(str(total_steps))}}/{total_steps}  loss {event['loss']:.4f}  "
            f"frozen {event['frozen_units']:>2}/{len(event['lr'])}  {event['images_per_second']:.1f} img/s  "
            f"waiting for data {wait:.0%}  MFU {event['mfu']:.0%}  ETA {duration(eta_seconds)}"
        )

    def freeze(self, event: dict[str, Any], accumulation: int) -> None:
        units = ", ".join("patch embedding" if unit == 0 else f"block {unit}" for unit in event["units"])
        stages = "".join(f", stage {stage} removed" for stage in event["stages_removed"])
        before, after = event["optimizer_bytes_before"][0], event["optimizer_bytes_after"][0]
        self.say(
            f"step {event['step']}: froze {units}{stages}; optimizer {before / 1e6:.2f} → {after / 1e6:.2f} MB "
            f"per rank in {event['seconds']:.2f} s; micro-batch {event['micro_batch']} x {accumulation}"
        )
