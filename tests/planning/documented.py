"""The examples of docs/planning.md, run again: `python -m tests.planning.documented` writes their output anew, and
draws the first one into docs/plan.png.

An example is a fenced block that starts with "$ " and a command; the rest of the block is what it prints.
"""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

from launch import plan

PAGE = Path(__file__).parents[2] / "docs" / "planning.md"
EXAMPLE = re.compile(r"^```\n\$ (.*?[^\\])\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    return [match[1] for match in EXAMPLE.finditer(page)]


def output(command: str) -> str:
    """What `python launch/plan.py …` prints, in this process."""
    interpreter, script, *arguments = shlex.split(command.replace("\\\n", " "))
    assert (interpreter, script) == ("python", "launch/plan.py")
    before, printed = sys.argv, io.StringIO()
    sys.argv = [script, *arguments]
    try:
        with contextlib.redirect_stdout(printed):
            plan.main()
    finally:
        sys.argv = before
    return printed.getvalue()


def renewed(page: str) -> str:
    """The page with the output of each of its commands as it is now."""
    return EXAMPLE.sub(lambda match: f"```\n$ {match[1]}\n{output(match[1])}```", page)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(renewed(text), encoding="utf-8")
    output(f"{commands(text)[0]} --picture {PAGE.with_name('plan.png')}")
