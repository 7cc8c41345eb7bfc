"""Counter-based random numbers: each is a pure function of a key, so nothing has to be replayed or saved.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) instead of NumPy's or
PyTorch's generators, because their streams may change between versions and ours decides the order of a run's
samples."""

import numpy as np
from numpy.typing import NDArray

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def splitmix64(value: int) -> int:
    """The SplitMix64 output for the 64-bit state `value`."""
    z = (value + _GOLDEN_GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def splitmix64_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`splitmix64` of every element; uint64 arithmetic wraps around as the algorithm wants."""
    z = values + np.uint64(_GOLDEN_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


def derive_key(*words: int) -> int:
    """A 64-bit key from a sequence of integers, e.g. (seed, purpose, epoch, position)."""
    key = 0
    for word in words:
        key = splitmix64(key ^ (word & _MASK))
    return key


def derive_keys(prefix: int, last_words: NDArray[np.int64]) -> NDArray[np.uint64]:
    """`derive_key(..., word)` for many last words, given `prefix = derive_key(...)` of the words before them."""
    return splitmix64_array(np.uint64(prefix) ^ last_words.astype(np.uint64))


def permutation(key: int, length: int) -> NDArray[np.int64]:
    """A permutation of range(length) that the key decides: the argsort of `length` pseudorandom numbers."""
    return np.argsort(derive_keys(key, np.arange(length, dtype=np.int64)), kind="stable")


class UniformStream:
    """Uniform numbers drawn one after another from a key."""

    def __init__(self, key: int) -> None:
        self._state = key

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float64 in [low, high)."""
        bits = splitmix64(self._state)
        self._state = (self._state + _GOLDEN_GAMMA) & _MASK
        return low + (high - low) * (bits >> 11) * 2.0**-53

    def integer(self, count: int) -> int:
        """An integer in 0 … count - 1. (Taking a float64's floor is biased by less than count / 2^53.)"""
        return int(self.uniform(0.0, count))
