"""The commands and the Python of docs/export.md run as they stand there."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from launch import export
from tests.pretrained.models import write_run
from trainer.model.config import ModelConfig

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
SECTIONS = dict(re.findall(r"^### (\w+): .*?\n(.*?)(?=^##|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.slow
def test_the_page_runs_on_a_vit_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "RUN", ModelConfig(decoder_dim=16, decoder_heads=2))
    monkeypatch.chdir(tmp_path)
    assert SECTIONS.keys() == export.FORMATS.keys()
    for format, section in SECTIONS.items():
        (command,) = re.findall(r"^python launch/(export\.py .+)$", section, flags=re.MULTILINE)
        assert f"--format {format}" in command
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        assert export.main() == 0
        names: dict = {}
        for source in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL):
            exec(source, names)
        if format in ("timm", "huggingface"):
            assert names["model"].num_features == 768
