"""Micro-batches from the loader to the accelerator, ahead of the step that needs them.

A thread draws the next micro-batch while the current one computes, so that neither putting its pixels together on the
host nor copying them, on a stream of their own, holds up a step. What the training loop still waits for here is what it
really lacks: a loader that is slower than the device.

On a CPU there is nothing to copy, and a thread would take its time from the training; there the loader is drawn from
directly.
"""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from trainer.data.batches import MicroBatch
from trainer.data.loader import Loader

JOIN_SECONDS = 10.0
"""How long the end of a run waits for a thread that is in the loader: it may stand at a disk that does not answer."""

Uploaded = tuple[MicroBatch, Any]
"""A micro-batch, and the event that its images and mask keys have arrived on the device."""


def on_device(loader: Loader, device: torch.device) -> AbstractContextManager[Iterator[MicroBatch]]:
    """The loader's micro-batches with images and mask_keys on `device`. Leaving the context ends the loader.

    `next` raises what the loader raises."""
    return contextlib.closing(iter(loader)) if device.type == "cpu" else DeviceFeed(iter(loader), device)


class DeviceFeed(Iterator[MicroBatch]):
    """Draws from `source` in a thread of its own, and takes care of its end.

    At most four micro-batches are on the device: the one that computes, one in the queue, one in the hands of the
    thread, and for a moment the one before, until the device has read it and whoever drew it has let go of it. The
    memory model (`trainer.planning.activations.working_bytes`) counts these four."""

    def __init__(self, source: Generator[MicroBatch, None, None], device: torch.device):
        self._source, self._device = source, device
        self._stream = get_accelerator().Stream()
        self._ready: queue.Queue[Uploaded | BaseException] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="device feed", daemon=True)
        self._thread.start()

    def __enter__(self) -> "DeviceFeed":
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        with contextlib.suppress(queue.Empty):  # the thread may wait for room
            self._ready.get_nowait()
        self._thread.join(JOIN_SECONDS)

    def __next__(self) -> MicroBatch:
        drawn = self._ready.get()
        if isinstance(drawn, BaseException):
            self._ready.put(drawn)  # for whoever asks again
            raise drawn
        batch, arrived = drawn
        computing = get_accelerator().current_stream()
        computing.wait_event(arrived)  # a wait of the stream, not of the host
        for tensor in (batch.images, batch.mask_keys):
            tensor.record_stream(computing)  # its memory is the other stream's
        return batch

    def _draw(self) -> None:
        try:
            get_accelerator().set_device(self._device.index)  # a thread starts on device 0
            with contextlib.closing(self._source):  # in this thread: a generator cannot be closed while it runs
                for batch in self._source:
                    self._ready.put(self._upload(batch))
                    if self._closed.is_set():
                        return
            self._ready.put(StopIteration())
        except BaseException as error:  # whatever it is, it belongs to whoever asks for the next micro-batch
            self._ready.put(error)

    def _upload(self, batch: MicroBatch) -> Uploaded:
        accelerator = get_accelerator()
        with accelerator.stream(self._stream):
            images = batch.images.to(self._device, non_blocking=True)  # from pinned memory, which outlives the copy
            keys = batch.mask_keys.to(self._device, non_blocking=True)
            arrived = accelerator.Event()
            arrived.record(self._stream)
        return replace(batch, images=images, mask_keys=keys), arrived
