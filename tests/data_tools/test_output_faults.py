"""An output directory that is full, in use or none at all ends the command in one line, with nothing half-written."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.output_folder import sole_writer
from data_tools.shard_scan import describe_shard
from tests.data_tools.shard_contents import contents
from tests.photographs import write_class_folders


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("images"), per_class=8, width=200, height=150)


def command(source: Path, output: Path, *more: str) -> list[str]:
    return ["imagefolder", "--input", str(source), "--output", str(output), "--shards", "4", "--workers", "2", *more]


def in_another_process(arguments: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "data_tools", *arguments], capture_output=True, text=True, **options)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_no_room_for_a_shard_is_one_line_and_the_run_goes_on_later(source, tmp_path):
    def limit_file_sizes() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    output = tmp_path / "set"
    done = in_another_process(command(source, output), preexec_fn=limit_file_sizes)
    assert done.returncode == 2
    assert last_line(done.stderr) == (
        f"imagefolder: cannot write to {output}: File too large; "
        "mend that and run the command again, it goes on from there"
    )
    assert "Traceback" not in done.stderr
    assert [path.name for path in output.iterdir()] == ["train.report.json"]
    assert main(command(source, output)) == 0
    assert main(command(source, tmp_path / "whole" / "set")) == 0
    assert contents(output) == contents(tmp_path / "whole" / "set")


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to("/nowhere/at/all")])
def test_an_output_that_is_no_folder_is_refused(make, source, tmp_path, capsys):
    make(tmp_path / "set")
    assert main(command(source, tmp_path / "set")) == 2
    assert last_line(capsys.readouterr().err).startswith(f"imagefolder: cannot write to {tmp_path / 'set'}: ")


def test_two_conversions_cannot_write_to_one_folder(source, tmp_path):
    output = tmp_path / "set"
    with sole_writer(output, "mend that"):
        done = in_another_process(command(source, output))
    assert done.returncode == 2
    assert "another conversion or index is writing to" in done.stderr
    assert in_another_process(command(source, output)).returncode == 0


def test_what_a_killed_run_left_half_written_is_removed(source, tmp_path):
    output = tmp_path / "set"
    output.mkdir()
    (output / "train-00017.tar.tmp").write_bytes(b"half a shard")
    assert main(command(source, output)) == 0
    assert not list(output.glob("*.tmp"))


def test_a_shard_that_was_cut_off_afterwards_is_not_taken_for_whole(source, tmp_path, capsys):
    output = tmp_path / "set"
    assert main(command(source, output)) == 0
    shard = output / "train-00002.tar"
    os.truncate(shard, shard.stat().st_size // 2)
    assert main(command(source, output)) == 2
    assert str(shard) in last_line(capsys.readouterr().err)
    shard.unlink()
    assert main(command(source, output)) == 0
    describe_shard(shard)


def test_an_interrupted_command_says_how_to_go_on(tmp_path):
    source = write_class_folders(tmp_path / "images", per_class=60, width=200, height=150)
    for image in list(source.rglob("*.jpg")):
        for number in range(19):  # work for seconds, so that it is not done before it hears of the signal
            os.link(image, image.with_stem(f"{image.stem}_{number}"))
    output = tmp_path / "set"
    arguments = command(source, output, "--shards", "90")
    process = subprocess.Popen([sys.executable, "-m", "data_tools", *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(output.glob("*.tar")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert last_line(errors) == "imagefolder: interrupted; run it again to go on"
    assert not list(output.glob("*.tmp"))
    assert not (output / "train.json").exists()


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, True), (errno.EACCES, True), (errno.EBADF, False)])
def test_what_a_person_can_mend_is_one_line_wherever_it_happens(number, told, monkeypatch, capsys):
    def fail(arguments: object) -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr("data_tools.show.run", fail)
    if told:
        assert main(["show", "x"]) == 2
        assert capsys.readouterr().err == f"show: /some/file: {os.strerror(number)}\n"
    else:
        with pytest.raises(OSError, match="Bad file descriptor"):
            main(["show", "x"])
