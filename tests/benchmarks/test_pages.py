"""What all commands of the benchmarks refuse before they measure anything, and the page that they write."""

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.pages import command_parser, run_command
from benchmarks.tables import Section
from trainer.errors import BadInput

COMMANDS = ("checkpoint", "compile", "data", "freezing", "rebatch", "rebuild", "scaling", "step")
SECTION = Section("Speed", "By hand.", ["case", "speed"], [["ours", "2"]])


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_in_no_folder_is_refused_before_anything_is_measured(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "missing" / "page.md"
    assert import_module(f"benchmarks.{name}").main(["--quick", "--output", str(page)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"benchmarks.{name}: --output {page}: there is no folder {page.parent}; make it\n"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("rebuild", ["--stages", "7"], "argument --stages: invalid choice: 7"),
        ("rebuild", ["--ranks", "0"], "argument --ranks: 0 is no number from 1"),
        ("checkpoint", ["--ranks", "two"], "argument --ranks: two is no number from 1"),
    ],
)
def test_layouts_that_there_are_not_are_refused(
    name: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        import_module(f"benchmarks.{name}").main(["--quick", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["freezing", "scaling"])
def test_a_part_that_there_is_not_is_refused_before_anything_is_measured(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = import_module(f"benchmarks.{name}")
    assert command.main(["--quick", "--only", "loader,sleep"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"benchmarks.{name}: --only loader,sleep: there is no part 'sleep'; take some of {','.join(command.PARTS)}\n"
    )


def test_the_page_names_the_command_the_machine_and_what_was_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    parser = command_parser("speed", "`usage`\n\nWhat it does.", quick="in a moment")
    parser.add_argument("--only")
    words = ["--only", "a b", "--output", str(page), "--quick"]
    assert run_command(parser, words, "How fast", lambda arguments: [SECTION] * arguments.quick) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# How fast\n\n`python -m benchmarks.speed --only 'a b' --quick`\n\n- ")
    assert "deepspeed" in text
    assert text.endswith(SECTION.markdown())
    assert capsys.readouterr().out == text + "\n"


def test_input_that_turns_out_bad_midway_ends_with_one_line_and_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sections(_arguments: object):
        yield SECTION
        raise BadInput("--corpus x: no images")

    page = tmp_path / "page.md"
    parser = command_parser("speed", None, quick="in a moment")
    assert run_command(parser, ["--output", str(page)], "How fast", sections) == 2
    assert capsys.readouterr().err == "benchmarks.speed: --corpus x: no images\n"
    assert not page.exists()
