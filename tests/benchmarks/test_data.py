"""The benchmarks run: no figure is judged here, for a busy machine may print any."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.corpus import Corpus, _data_tools, make_corpus
from trainer.errors import BadInput

ROWS = (
    "PIL + torchvision ImageFolder",
    "timm `wds` reader",
    "open_clip pipeline",
    "LaneLoader, then normalised",
    "decode the JPEG",
    "sequential, as `cat",
    "lanes, tar headers checked",
    "webdataset ShardWriter script",
    "data_tools: check of all headers",
    "LaneLoader, started at the step",
    "webdataset, samples skipped",
    "webdataset shuffle(5000), 1 stream",
    "full permutation",
)


@pytest.mark.exhaustive
def test_one_command_measures_every_row_and_writes_the_page(tiles: Path, tmp_path: Path):
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "benchmarks.data", "--quick", "--corpus", str(tiles), "--output", str(page)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    text = page.read_text(encoding="utf-8")
    assert [row for row in ROWS if f"| {row}" not in text] == []
    assert [line for line in text.splitlines() if line and line not in finished.stdout] == []
    assert "nan" not in text
    assert (tmp_path / "mixing.png").read_bytes().startswith(b"\x89PNG")


def test_the_shards_hold_the_photographs_of_the_folder(corpus: Corpus):
    assert corpus.images == corpus.index.num_samples == 120
    assert len(corpus.index.shards) > 4  # a lane each, so that lanes differ from a sequential read


def test_a_tool_that_ends_without_a_word_is_named_with_its_exit_code(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(BadInput, match="data_tools verify: exit code 1"):
        _data_tools("verify")


def test_a_folder_without_class_folders_is_refused(tmp_path: Path):
    (tmp_path / "photograph.jpg").write_bytes(b"")
    with pytest.raises(BadInput, match=r"0 files in class folders"):
        make_corpus(tmp_path, 60, tmp_path / "work")
