"""The loader gives the same global batches, pixels included, for any number of ranks and workers, also after a
resume."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import trainer.data.lane_shares
import trainer.data.reader
from tests.data.test_order import sample_at
from trainer.data.augment import augment
from trainer.data.batches import MicroBatch
from trainer.data.config import DataConfig
from trainer.data.decode import decode_rgb
from trainer.data.errors import WorkerFailed
from trainer.data.loader import LaneLoader
from trainer.data.order import LaneOrder
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex
from trainer.errors import BadInput

GLOBAL_BATCH, IMAGE_SIZE, SEED, WINDOW = 16, 32, 3, 8
STEPS_PER_EPOCH = 150 // GLOBAL_BATCH
# Ranks, workers per rank, micro-batch.
LAYOUTS = [(1, 0, 16), (1, 3, 8), (2, 2, 4), (4, 1, 2), (4, 2, 1)]


def make_loader(shards: Path, rank=0, world_size=1, workers=0, micro_batch=8, start=0, end=2, **changes) -> LaneLoader:
    config = DataConfig(window=WINDOW, workers=workers, **changes)
    return LaneLoader(
        ShardIndex.open(shards),
        config,
        image_size=IMAGE_SIZE,
        seed=SEED,
        global_batch=GLOBAL_BATCH,
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
        start_step=start,
        end_step=end,
    )


def global_batches(shards: Path, world_size: int, workers: int, micro_batch: int, start: int, end: int) -> list[dict]:
    """Each step's samples in the order of positions, put together from what all the ranks load."""
    ranks = [
        list(make_loader(shards, rank, world_size, workers, micro_batch, start, end)) for rank in range(world_size)
    ]
    per_step = GLOBAL_BATCH // (micro_batch * world_size)
    assert [len(batches) for batches in ranks] == [(end - start) * per_step] * world_size
    steps = []
    for first in range(0, (end - start) * per_step, per_step):
        # Micro-batch by micro-batch, sample i of each rank in turn: that is how positions are dealt out.
        rows = [
            (batches[number], row)
            for number in range(first, first + per_step)
            for row in range(micro_batch)
            for batches in ranks
        ]
        steps.append(
            {
                "keys": [batch.keys[row] for batch, row in rows],
                "images": torch.stack([batch.images[row] for batch, row in rows]),
                "labels": torch.stack([batch.labels[row] for batch, row in rows]),
                "mask_keys": torch.stack([batch.mask_keys[row] for batch, row in rows]),
            }
        )
    return steps


def reference_batches(shards: Path, end: int) -> list[dict]:
    """The same without lanes, blocks, micro-batches and workers: every position by itself."""
    index = ShardIndex.open(shards)
    order = LaneOrder(index.shard_lengths, seed=SEED, global_batch=GLOBAL_BATCH, lanes=None, window=WINDOW)
    steps = []
    for step in range(end):
        epoch, first = order.locate(step)
        positions = np.arange(first, first + GLOBAL_BATCH)
        samples = [
            parse_sample(read_samples(index, np.array([sample_at(order, epoch, p)]))[0]) for p in positions.tolist()
        ]
        views = [
            augment(decode_rgb(sample.image), order.augmentation_key(epoch, position), DataConfig(), IMAGE_SIZE)
            for sample, position in zip(samples, positions.tolist(), strict=True)
        ]
        steps.append(
            {
                "keys": [sample.key for sample in samples],
                "images": torch.stack(views),
                "labels": torch.tensor([sample.label for sample in samples]),
                "mask_keys": torch.from_numpy(order.mask_keys(epoch, positions)),
            }
        )
    return steps


def assert_same(steps: list[dict], expected: list[dict]) -> None:
    assert len(steps) == len(expected)
    for step, other in zip(steps, expected, strict=True):
        assert step["keys"] == other["keys"]
        for name in ("images", "labels", "mask_keys"):
            assert torch.equal(step[name], other[name]), name


@pytest.fixture(scope="module")
def expected(shards) -> list[dict]:
    return reference_batches(shards, 2 * STEPS_PER_EPOCH + 2)


@pytest.mark.parametrize(
    ("world_size", "workers", "micro_batch"), [*LAYOUTS[:4], pytest.param(*LAYOUTS[4], marks=pytest.mark.exhaustive)]
)
def test_global_batches_do_not_depend_on_ranks_workers_and_micro_batch(
    shards, expected, world_size, workers, micro_batch
):
    assert_same(global_batches(shards, world_size, workers, micro_batch, 0, len(expected)), expected)


@pytest.mark.parametrize(
    ("world_size", "workers", "micro_batch", "start"),
    [
        (1, 0, 16, 5),
        (2, 3, 8, 5),
        (4, 1, 4, STEPS_PER_EPOCH),
        (2, 0, 8, STEPS_PER_EPOCH),
        (1, 2, 4, STEPS_PER_EPOCH + 4),
    ],
)
def test_a_resumed_loader_continues_on_any_layout(shards, expected, world_size, workers, micro_batch, start):
    continued = global_batches(shards, world_size, workers, micro_batch, start, len(expected))
    assert_same(continued, expected[start:])


def test_an_epoch_holds_each_sample_once_and_the_next_has_another_order(shards):
    steps = global_batches(shards, 2, 0, 8, 0, 2 * STEPS_PER_EPOCH)
    keys = [key for step in steps for key in step["keys"]]
    first, second = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    assert len(set(first)) == len(first) == STEPS_PER_EPOCH * GLOBAL_BATCH
    assert len(set(second)) == len(second) == len(first)
    assert first != second


def test_the_same_sample_is_cropped_anew_in_the_next_epoch(shards):
    steps = global_batches(shards, 1, 0, 16, 0, 2 * STEPS_PER_EPOCH)
    views: dict[str, list] = {}
    for step in steps:
        for key, image in zip(step["keys"], step["images"], strict=True):
            views.setdefault(key, []).append(image)
    pairs = [pair for pair in views.values() if len(pair) == 2]
    assert len(pairs) > 100
    assert not any(torch.equal(*pair) for pair in pairs)


def test_a_micro_batch_is_what_it_says(shards):
    batch = next(iter(make_loader(shards, micro_batch=8)))
    assert isinstance(batch, MicroBatch)
    assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (8, 3, IMAGE_SIZE, IMAGE_SIZE))
    assert (batch.mask_keys.dtype, tuple(batch.mask_keys.shape)) == (torch.int64, (8,))
    assert (batch.labels.dtype, tuple(batch.labels.shape)) == (torch.int64, (8,))
    assert len(set(batch.keys)) == 8
    classes = ShardIndex.open(shards).classes
    assert classes is not None
    assert {batch.labels[row].item() for row in range(8)} <= set(range(len(classes)))


def test_resuming_reads_at_most_one_block_per_lane_again(shards, monkeypatch):
    read = []

    def counting(index, samples, storage):
        read.extend(samples.tolist())
        return read_samples(index, samples, storage)

    monkeypatch.setattr(trainer.data.reader, "read_samples", counting)
    start = STEPS_PER_EPOCH - 3
    for _ in make_loader(shards, start=start, end=STEPS_PER_EPOCH):
        pass
    lanes = GLOBAL_BATCH
    assert len(read) <= 3 * GLOBAL_BATCH + lanes * WINDOW
    assert len(read) == len(set(read))


def test_ranks_read_disjoint_parts_of_the_shards(shards, monkeypatch):
    read: list[set] = []

    def counting(index, samples, storage):
        read[-1].update(samples.tolist())
        return read_samples(index, samples, storage)

    monkeypatch.setattr(trainer.data.reader, "read_samples", counting)
    for rank in range(4):
        read.append(set())
        for _ in make_loader(shards, rank=rank, world_size=4, micro_batch=4, end=STEPS_PER_EPOCH):
            pass
    assert sum(map(len, read)) == len(set.union(*read))


def test_batches_and_ranks_that_do_not_fit_are_refused(shards):
    with pytest.raises(BadInput, match="16 is not a whole number of micro-batches of 5 on 1 ranks"):
        make_loader(shards, micro_batch=5)
    with pytest.raises(BadInput, match=r"data\.lanes = 2 is not a multiple of the world size 4: .* data\.lanes=4"):
        make_loader(shards, world_size=4, micro_batch=4, lanes=2)


def test_more_workers_than_lanes_are_lowered_with_a_word(shards, caplog):
    with caplog.at_level("INFO"):
        loader = make_loader(shards, world_size=8, micro_batch=2, workers=5)
    assert loader.num_workers == 2
    assert "data.workers lowered from 5 to 2" in caplog.text


def test_a_killed_worker_is_an_error_and_not_a_hang(shards):
    batches = iter(make_loader(shards, workers=2, end=10_000))
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerFailed, match=r"lower data\.workers"):
        for _ in batches:
            pass


@pytest.mark.parametrize("error", [AssertionError, ValueError, MemoryError, OSError])
def test_whatever_a_worker_raises_that_is_no_word_for_people_is_a_failed_worker(shards, monkeypatch, error):
    def failing(*_) -> None:
        raise error("deep inside")

    monkeypatch.setattr(trainer.data.lane_shares, "training_view", failing)
    with pytest.raises(WorkerFailed, match=rf"a data worker failed \({error.__name__}") as caught:
        list(make_loader(shards))
    assert isinstance(caught.value.__cause__, error)


def run_python_in_group(code: str, folder: Path, shards: Path) -> subprocess.CompletedProcess:
    """Runs code that defines main() in a process group of its own, as launchers start ranks."""
    script = folder / "script.py"
    imports = "import multiprocessing, os, signal, sys\n"
    script.write_text(f"{imports}{textwrap.dedent(code)}\nif __name__ == '__main__':\n    main()\n")
    repository = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, script, shards], capture_output=True, text=True, timeout=100, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(repository)},
    )  # fmt: skip


MAKE_LOADER = """
    from pathlib import Path
    from tests.data.test_loader import make_loader
    def workers():
        return [child.pid for child in multiprocessing.active_children()]
"""


def test_batches_keep_coming_after_signals_to_all_processes_of_the_job(shards, tmp_path):
    """So that the training process can finish its step and save."""
    code = f"""{MAKE_LOADER}
    def main():
        signals = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
        for number in signals:
            signal.signal(number, lambda number, _: print(number, flush=True))
        batches = iter(make_loader(Path(sys.argv[1]), workers=2, end=60))
        next(batches)
        assert len(workers()) == 2
        for number in signals:
            os.killpg(0, number)
        print(sum(len(batch.keys) for batch in batches))
    """
    done = run_python_in_group(code, tmp_path, shards)
    *received, samples = done.stdout.split()
    assert sorted(received) == ["10", "15", "2"], done.stderr  # in whatever order the kernel hands them out
    assert samples == str(60 * GLOBAL_BATCH - 8), done.stderr
    assert "resource_tracker" not in done.stderr
    assert "Traceback" not in done.stderr


def test_leaving_with_batches_unread_does_not_hang(shards, tmp_path):
    code = f"""{MAKE_LOADER}
    def main():
        batches = iter(make_loader(Path(sys.argv[1]), workers=2, end=10_000))
        next(batches)
        raise SystemExit(7)
    """
    assert run_python_in_group(code, tmp_path, shards).returncode == 7


def test_workers_and_their_server_leave_when_the_training_process_is_killed(shards, tmp_path):
    code = f"""{MAKE_LOADER}
    import psutil
    def main():
        batches = iter(make_loader(Path(sys.argv[1]), workers=2, end=10_000))
        next(batches)
        print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = run_python_in_group(code, tmp_path, shards)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 3
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker or the server outlived the training process"
        time.sleep(0.1)
