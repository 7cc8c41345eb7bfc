"""Images per second of the loaders, side by side."""

import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.corpus import Corpus
from benchmarks.loaders import BASELINE, CONTENDERS, IMAGE_SIZE, PREFETCH
from benchmarks.rounds import Costs, cpu_seconds, ratio_text, take_turns
from benchmarks.tables import Section


def loader_section(corpus: Corpus, *, batch: int, batches: int, rounds: int) -> Section:
    """The loaders side by side: in this process, then with one worker process each."""
    alone = take_turns({c.name: _in_process(c.batches(corpus, 0, batch), batch, batches) for c in CONTENDERS}, rounds)
    streams = {c.name: c.batches(corpus, 1, batch) for c in CONTENDERS}
    worker = take_turns({name: _from_worker(stream, batch, batches) for name, stream in streams.items()}, rounds)
    rows = [[c.name, c.gives, *_figures(alone, c.name), *_figures(worker, c.name)] for c in CONTENDERS]
    return Section(
        "Loading: images per second and core",
        f"{corpus.images} photographs, {corpus.image_bytes / corpus.images / 1e3:.0f} kB on average, to "
        f"{IMAGE_SIZE} px in batches of {batch}; page cache warm, one thread. {rounds} rounds of {batches} batches, in "
        "turn. *In process*: images per second of CPU time, all threads counted. *One worker*: images per second of "
        f"wall time from one worker process, after the {PREFETCH} batches that it had ready. Rates are the median "
        "round's and, in brackets, the best one's; ratios to ImageFolder the median and quartiles over the rounds.",
        ["loader", "gives", "in process, img/s", "× ImageFolder", "one worker, img/s", "× ImageFolder"],
        rows,
    )


def _figures(costs: dict[str, Costs], name: str) -> list[str]:
    return [f"{costs[name].median_rate:.0f} ({costs[name].best_rate:.0f})", ratio_text(costs[name], costs[BASELINE])]


def _in_process(stream: Iterator[torch.Tensor], batch: int, batches: int) -> Callable[[], float]:
    def read() -> None:
        for _ in range(batches):
            next(stream)

    return cpu_seconds(read, batch * batches)


def _from_worker(stream: Iterator[torch.Tensor], batch: int, batches: int) -> Callable[[], float]:
    """Wall time per image. Waits afterwards until the worker has filled its queue, so that it idles while others are
    timed."""

    def measure() -> float:
        for _ in range(PREFETCH + 1):
            next(stream)
        start = time.perf_counter()
        for _ in range(batches):
            next(stream)
        seconds = time.perf_counter() - start
        time.sleep(1.25 * PREFETCH * seconds / batches)
        return seconds / (batch * batches)

    return measure
