"""Types of command-line arguments that several commands share."""

import argparse


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def picture_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT, in pixels."""
    width, cross, height = text.partition("x")
    if not cross:
        raise argparse.ArgumentTypeError(f"{text} is not WIDTHxHEIGHT, as in 500x375")
    return positive(width), positive(height)
