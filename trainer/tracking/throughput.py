"""How fast, against what this device can do: images per second, waiting for data, and MFU.

MFU (model FLOPs utilisation) is the matmul FLOPs of the steps taken divided by the time and by the rate of a large
matrix product *measured* on this device in the training dtype at the start of the run. A rate from a data sheet would
give a lower figure.
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from deepspeed.accelerator import get_accelerator


def measure_gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few large matrix products. Takes about a second on a CPU, milliseconds on a GPU."""
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        get_accelerator().synchronize()
        start = time.perf_counter()
        a @ b
        get_accelerator().synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


@dataclass
class Throughput:
    """Adds up an interval between two log lines. Work that is no training (saving, drawing, freezing) is left out of it
    by wrapping it in `aside`."""

    gemm_rate: float
    steps: int = 0
    waited: float = 0.0
    flops: float = 0.0
    _aside: float = 0.0
    _start: float = field(default_factory=time.perf_counter)

    @contextmanager
    def waiting(self):
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextmanager
    def aside(self):
        get_accelerator().synchronize()  # queued steps belong to the training, not to what follows
        start = time.perf_counter()
        yield
        self._aside += time.perf_counter() - start

    def step_done(self, flops: float) -> None:
        """`flops`: matmul FLOPs of this rank's share of the step."""
        self.steps += 1
        self.flops += flops

    def read(self) -> dict[str, float]:
        """Seconds per step, seconds that this rank waited for data per step, and MFU, since the last `restart`."""
        seconds = max(time.perf_counter() - self._start - self._aside, 1e-9)
        return {
            "step_seconds": seconds / self.steps,
            "data_wait_seconds": self.waited / self.steps,
            "mfu": self.flops / seconds / self.gemm_rate,
        }

    def restart(self) -> None:
        self.steps, self.waited, self.flops, self._aside = 0, 0.0, 0.0, 0.0
        self._start = time.perf_counter()


def memory_bytes(device: torch.device) -> int:
    """Peak of the memory allocated on the accelerator since the last call; on a CPU, what is resident now."""
    if device.type == "cpu":
        import psutil

        return psutil.Process().memory_info().rss
    peak = int(get_accelerator().max_memory_allocated())
    get_accelerator().reset_peak_memory_stats()
    return peak
