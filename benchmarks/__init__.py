"""Measured side by side, one command each: `python -m benchmarks.data` and `python -m benchmarks.checkpoint`."""
