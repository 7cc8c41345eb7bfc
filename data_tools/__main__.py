"""`python -m data_tools {imagenet,imagefolder,index,verify,show,photographs} --help`

Each command is a module that offers SUMMARY, `add_arguments(parser)` and `run(arguments)`. Exit codes: 0 done, 2 bad
input (one line says what and how to mend it)."""

import argparse
import errno
import signal
import sys

from data_tools import imagefolder, imagenet, index, photographs, show, verify
from trainer.errors import BadInput

COMMANDS = {
    "imagenet": imagenet,
    "imagefolder": imagefolder,
    "index": index,
    "verify": verify,
    "show": show,
    "photographs": photographs,
}

# What the operating system has against a file, and a person can mend. Any other OSError is a fault of the program.
_MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; the return value is the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m data_tools", description="Tools that make and look after shards.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.SUMMARY, description=module.__doc__)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        module.add_arguments(command)
    arguments = parser.parse_args(argv)
    try:
        COMMANDS[arguments.command].run(arguments)
    except BadInput as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        print(f"{arguments.command}: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{arguments.command}: interrupted; run it again to go on", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
