"""docs/planning.md says what the command says."""

import pytest

from tests.planning.documented import PAGE, commands, output, renewed


def test_the_page_shows_models_from_base_to_two_billion_on_8_to_4096_ranks() -> None:
    compared = [command for command in commands(PAGE.read_text(encoding="utf-8")) if "8,64,512,4096" in command]
    assert len(compared) >= 4


def test_the_first_example_prints_what_the_page_shows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    command = commands(page)[0]
    assert f"```\n$ {command}\n{output(command)}```" in page


@pytest.mark.slow
def test_every_example_prints_what_the_page_shows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page
