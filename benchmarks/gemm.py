"""Whether this processor multiplies bf16 matrices fast enough for a training in bf16 to be worth timing."""

import time

import torch


def why_no_bf16() -> str | None:
    """Why bf16 is not measured here; None where its matrix product is at least as fast as that of fp32."""
    fp32, bf16 = (_small_gemm_rate(dtype) / 1e9 for dtype in (torch.float32, torch.bfloat16))
    if bf16 >= fp32:
        return None
    return f"No bf16 rows: this processor has no bf16 instructions, GEMM {bf16:.1f} against {fp32:.0f} GFLOP/s in fp32."


def _small_gemm_rate(dtype: torch.dtype, size: int = 256) -> float:
    """FLOP/s of the best of a few products: without bf16 instructions a large one takes seconds."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
