"""Whole weights under ZeRO-3, between steps."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus


def gathered(parameters: Iterable[Any]) -> AbstractContextManager:
    """Within this context the parameters are whole on every rank. Nothing happens to those that are whole already.

    DeepSpeed's own context divides again whatever it is given. Small parameters that ZeRO-3 keeps whole
    (``stage3_param_persistence_threshold``) would then be gathered, and counted among the live ones, once more in the
    next forward."""
    divided = [p for p in parameters if getattr(p, "ds_status", None) is ZeroParamStatus.NOT_AVAILABLE]
    return deepspeed.zero.GatheredParameters(divided) if divided else nullcontext()
