"""What a measurement was made on: without it, a figure cannot be compared with another."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from trainer.errors import BadInput

_PACKAGES = (
    "torch", "deepspeed", "torchvision", "pillow", "simplejpeg", "timm", "webdataset", "open_clip_torch", "numpy",
)  # fmt: skip


def describe_machine() -> str:
    """Date, processor, cores that this process may use, memory, load, system and package versions; markdown lines."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return "\n".join(
        [
            f"- {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load average {os.getloadavg()[0]:.1f} at the start",
            f"- {_processor()}, {len(os.sched_getaffinity(0))} cores for this process, {memory:.0f} GiB memory",
            f"- {platform.system()} {platform.release()}, Python {platform.python_version()}",
            f"- {packages}",
        ]
    )


def require_linux() -> None:
    """Raises BadInput elsewhere: /proc counts the bytes read, posix_fadvise drops the page cache."""
    if not Path("/proc/self/io").exists():
        raise BadInput("the benchmarks count bytes read through /proc/self/io: run them on Linux")


def bytes_read() -> int:
    """Bytes that this process has got from read(2) and its kin so far, from the page cache or from the disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(fields["rchar"])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
