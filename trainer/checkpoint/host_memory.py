"""The copy of a rank's state that a checkpoint is written from while training goes on."""

from collections.abc import Mapping

import torch
from deepspeed.accelerator import get_accelerator

from trainer.checkpoint.state_file import MASTER, REFERENCE, tensor_key
from trainer.engine.engine import FreezingEngine
from trainer.engine.frozen import FrozenArchive

State = dict[str, torch.Tensor]
"""This rank's share of a training state on the host: `tensor_key` → 1-D fp32 tensor."""


class HostMemory:
    """Host memory that this rank's state is copied into, kept from save to save.

    As many bytes as the masters and moments that the rank owns: 12 for each trained parameter, 16 with a moving
    average, divided over the ranks; page-locked for an accelerator. Grown when a state does not fit, and otherwise
    never given back: page-locking gigabytes takes seconds. The frozen weights' archive and a policy's reference are on
    the host and never written to, so they are not copied."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def copy_state(
        self, engine: FreezingEngine, archive: FrozenArchive, reference: Mapping[str, torch.Tensor] | None = None
    ) -> State:
        """This rank's state as it is now. Valid until the next call. Waits for the accelerator once, at the end."""
        here = {
            tensor_key(kind, fragment.name, fragment.start): values.detach()
            for fragment in engine.fragments(owned_only=True)
            for kind, values in {MASTER: fragment.master, **fragment.moments}.items()
        }
        needed = sum(values.numel() for values in here.values())
        if self._buffer.numel() < needed:
            self._buffer = torch.empty(0)  # the old one goes before the new one comes
            self._buffer = torch.empty(needed, pin_memory=get_accelerator().device_name() != "cpu")
        copies = self._buffer[:needed].split([values.numel() for values in here.values()])
        for copy, values in zip(copies, here.values(), strict=True):
            copy.copy_(values, non_blocking=True)
        get_accelerator().synchronize()
        frozen = {tensor_key(MASTER, name, start): values for name, start, values in archive}
        compared = {tensor_key(REFERENCE, name, 0): values.flatten() for name, values in (reference or {}).items()}
        return dict(zip(here, copies, strict=True)) | frozen | compared
