"""What the commands of the benchmarks share: their arguments, and the page of sections that each prints and writes.

Imports nothing heavy, since workers that read data import the command that started them once more."""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.tables import Section
from trainer.errors import BadInput
from trainer.files import write_text


def command_parser(
    name: str, doc: str | None, *, quick: str, output: str = "write the page here as well"
) -> argparse.ArgumentParser:
    """For `python -m benchmarks.NAME`: with --quick and --output, which all commands have.

    `doc`: the module's docstring, whose first line is the usage; `quick`, `output`: what the help says of the two."""
    description = (doc or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--output", type=Path, help=output)
    return parser


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    title: str,
    sections: Callable[[argparse.Namespace], Iterable[Section]],
) -> int:
    """Print the page, each section as soon as it is measured, and write it to --output.

    `sections` is called before anything is printed; what it returns may measure as it is walked through. Returns the
    exit code: 0, or 2 for input that cannot be used (one line says what and how to mend it)."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(words)
    try:
        if arguments.output and not arguments.output.parent.is_dir():
            raise BadInput(f"--output {arguments.output}: there is no folder {arguments.output.parent}; make it")
        measured = sections(arguments)
        parts = [f"# {title}\n\n`{_command(parser, words)}`\n\n{describe_machine()}\n"]
        print(parts[0], flush=True)
        for section in measured:
            parts.append(section.markdown())
            print(parts[-1], flush=True)
    except BadInput as error:
        print(f"{parser.prog.removeprefix('python -m ')}: {error}", file=sys.stderr)
        return 2
    if arguments.output:
        write_text(arguments.output, "\n".join(parts))
    return 0


def at_least_one(text: str) -> int:
    """A type of arguments: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1")
    return int(text)


def chosen_parts(only: str, parts: Sequence[str]) -> list[str]:
    """Of --only, which names parts with commas between. Raises BadInput for one that there is not."""
    chosen = only.split(",")
    for part in chosen:
        if part not in parts:
            raise BadInput(f"--only {only}: there is no part {part!r}; take some of {','.join(parts)}")
    return chosen


def _command(parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """To measure the same again: without --output, which changes no figure."""
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--output")
    return shlex.join([*parser.prog.split(), *output.parse_known_args(words)[1]])
