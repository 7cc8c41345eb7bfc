"""The one exception that means "the input is wrong, the program is fine"."""

from pathlib import Path


class BadInput(ValueError):
    """Bad recipe, ds_config, data or command line. The message is one line for a person: it names the file or the key
    and the mend. The commands print it without a traceback and exit with code 2."""


def cannot_be_written(output: Path, error: OSError) -> BadInput:
    """What is said where nothing can be written to `--output`."""
    return BadInput(f"--output {output}: cannot be written ({error.strerror}): choose another, or mend that")
