"""The types of the DeepSpeed keys that DeepSpeed itself does not check, or reads too kindly.

DeepSpeed takes some values as they come ("gradient_predivide_factor": "x" fails at the first reduction), reads words as
booleans ("contiguous_gradients": "no"), and stumbles over others without naming the key. What it does check, by name
and before an engine is built, is left to it.
"""

from collections.abc import Callable
from typing import Any

from trainer.errors import BadInput


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_integer(value: Any) -> bool:
    return _is_number(value) and value == value // 1  # JSON writes large ones as 1e9, too


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


Kind = tuple[Callable[[Any], bool], str]
BOOLEAN: Kind = (_is_boolean, "give true or false")
POSITIVE: Kind = (_is_positive, "give a positive number")
NUMBER: Kind = (_is_number, "give a number")
INTEGER: Kind = (_is_integer, "give an integer")
TEXT: Kind = (_is_text, "give a string, or remove it")

KINDS: dict[str, dict[str, Kind]] = {
    "": {
        "disable_allgather": BOOLEAN,
        "dump_state": BOOLEAN,
        "gradient_predivide_factor": POSITIVE,
        "memory_breakdown": BOOLEAN,
        "prescale_gradients": BOOLEAN,
        "sparse_gradients": BOOLEAN,
        "steps_per_print": INTEGER,
        "wall_clock_breakdown": BOOLEAN,
        "zero_allow_untested_optimizer": BOOLEAN,
        "zero_force_ds_cpu_optimizer": BOOLEAN,
    },
    "zero_optimization": {
        "allgather_partitions": BOOLEAN,
        "contiguous_gradients": BOOLEAN,
        "ignore_unused_parameters": BOOLEAN,
        "overlap_comm": BOOLEAN,
        "reduce_scatter": BOOLEAN,
        "round_robin_gradients": BOOLEAN,
        "stage3_gather_16bit_weights_on_model_save": BOOLEAN,
    },
    "flops_profiler": {
        "detailed": BOOLEAN,
        "enabled": BOOLEAN,
        "module_depth": INTEGER,
        "output_file": TEXT,
        "profile_step": INTEGER,
        "recompute_fwd_factor": NUMBER,
        "top_modules": INTEGER,
    },
    "comms_logger": {"debug": BOOLEAN, "enabled": BOOLEAN, "prof_all": BOOLEAN, "verbose": BOOLEAN},
    "data_types": {},
    "aio": {},
}
"""Section ("" = the top of the file) → key → what it must be. "auto" is left to the check for values that stay so."""


def refuse_wrong_types(config: dict[str, Any], source: str) -> None:
    """Raises `BadInput` naming the file, the key and what to give."""
    for section, kinds in KINDS.items():
        content = config.get(section, {}) if section else config
        if not isinstance(content, dict):
            raise BadInput(f"{source}: {section} must be an object, not {content!r}")
        for key, (fits, mend) in kinds.items():
            if key in content and content[key] != "auto" and not fits(content[key]):
                name = f"{section}.{key}" if section else key
                raise BadInput(f"{source}: {name} is {content[key]!r}; {mend}")


_DTYPES = {
    "fp32": ("fp32", "float32", "float"),
    "bf16": ("bf16", "bfloat16"),
    "fp16": ("fp16", "float16", "half"),
}


def name_dtypes(config: dict[str, Any], source: str) -> None:
    """Write the types of gradients as fp32, bf16 or fp16, whichever of their names was given; changes `config`.

    DeepSpeed takes any for ``data_types.grad_accum_dtype`` and only these for ``communication_data_type``, and finds
    out about others when the engine is built. Raises `BadInput` naming the key and the types."""
    for section, key in ((config.get("data_types", {}), "grad_accum_dtype"), (config, "communication_data_type")):
        given = section.get(key)
        if given is None:
            continue
        name = given.lower().removeprefix("torch.") if isinstance(given, str) else None
        dtype = next((dtype for dtype, names in _DTYPES.items() if name in names), None)
        if dtype is None:
            prefix = "" if section is config else "data_types."
            raise BadInput(f"{source}: {prefix}{key} is {given!r}; give fp32, bf16 or fp16, or remove it")
        section[key] = dtype
