"""What is read is data, never code; it stays in its place, and secrets stay out of what is printed and saved.

Checkpoints and shards may come from strangers. Nothing unpickles, nothing reaches a shell, no name in a file leads out
of its folder, and no header makes the program allocate what it claims.
"""

import ast
import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_tools.shard_scan import describe_shard
from tests.data.http_store import serve
from tests.distributed import REPOSITORY
from tests.launch.bad_inputs import RECIPE
from tests.marked_secrets import MARK, QUERY, require_no_secret, run_with_secrets, with_secrets
from tests.photographs import jpeg_bytes, photographs
from trainer.checkpoint.manifest import DamagedCheckpoint, FileRecord, Manifest, sha256, verify, write_manifest
from trainer.checkpoint.reader import Checkpoint
from trainer.data.decode import UndecodableImage, decode_rgb
from trainer.errors import BadInput

SHELL_ALLOWED = {"trainer/data/pipe.py"}  # a `pipe:` source is a command that the user wrote to be run
UNPICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNNERS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.full_load", "yaml.unsafe_load"}
SOURCES = sorted(p for folder in ("trainer", "launch", "data_tools") for p in (REPOSITORY / folder).rglob("*.py"))


def dangers(source: str) -> Iterator[str]:
    """What in a module could run data as code, or a shell."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in UNPICKLERS:
                yield f"from {node.module} import"
        elif isinstance(node, ast.Call):
            yield from dangerous_call(ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords})


def dangerous_call(name: str, options: dict[str | None, str]) -> Iterator[str]:
    if name in RUNNERS:
        yield f"{name}()"
    if name == "torch.load" and options.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
        yield "np.load without allow_pickle=False"
    if options.get("shell", "False") != "False":
        yield "shell=True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_no_module_can_run_data_as_code(path: Path) -> None:
    found = set(dangers(path.read_text()))
    if path.relative_to(REPOSITORY).as_posix() in SHELL_ALLOWED:
        found.discard("shell=True")
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "eval(text)",
    ],
)
def test_the_search_for_dangers_finds_them(source: str) -> None:
    assert len(list(dangers(source))) == 1


# Checkpoints


NAME = "rank_00000.safetensors"
DEEP = '{"a":' * 100_000 + "0" + "}" * 100_000
Spoil = Callable[[Path], dict[str, FileRecord] | None]
"""Spoils a checkpoint; returns what its manifest says of its files, or None if the manifest is to stay as it is."""


def whole_checkpoint(folder: Path) -> Path:
    """A checkpoint of one weight [3] beside a file that is none of its business."""
    directory = folder / "run" / "checkpoints" / "step_00000005"
    directory.mkdir(parents=True)
    save_file({"master:weight:0": torch.ones(3)}, directory / NAME)
    save_file({"master:weight:0": torch.full((3,), 7.0)}, folder / "secret.safetensors")
    write_manifest(directory, manifest(directory, {NAME: record(directory / NAME)}))
    return directory


def manifest(directory: Path, files: dict[str, FileRecord]) -> Manifest:
    return Manifest(
        step=5, frozen_units=0, world_size=1, zero_stage=1, precision="fp32", recipe={}, index_hash="", engine={},
        shapes={"weight": [3]}, files=files,
    )  # fmt: skip


def record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=sha256(path))


def names(template: str) -> Spoil:
    """The manifest names the file outside, with its right size and checksum, by some path to it."""

    def spoil(directory: Path) -> dict[str, FileRecord]:
        outside = directory.parents[2] / "secret.safetensors"
        return {template.format(outside=outside): record(outside)}

    return spoil


def link_outside(directory: Path) -> dict[str, FileRecord]:
    outside = directory.parents[2] / "secret.safetensors"
    (directory / NAME).unlink()
    (directory / NAME).symlink_to(outside)
    return {NAME: record(outside)}


def endless_device(directory: Path) -> dict[str, FileRecord]:
    (directory / NAME).unlink()
    (directory / NAME).symlink_to("/dev/zero")
    return {NAME: FileRecord(bytes=0, sha256="")}


def pipe_without_writer(directory: Path) -> dict[str, FileRecord]:
    (directory / NAME).unlink()
    os.mkfifo(directory / NAME)
    return {NAME: FileRecord(bytes=0, sha256="")}


def folder_for_a_file(directory: Path) -> dict[str, FileRecord]:
    (directory / NAME).unlink()
    (directory / NAME).mkdir()
    return {NAME: FileRecord(bytes=(directory / NAME).stat().st_size, sha256="")}


def huge_claim(directory: Path) -> dict[str, FileRecord]:
    return {NAME: FileRecord(bytes=2**62, sha256=sha256(directory / NAME))}


def with_content(content: bytes) -> Spoil:
    """A rank's file of these bytes, with its right size and checksum in the manifest."""

    def spoil(directory: Path) -> dict[str, FileRecord]:
        (directory / NAME).write_bytes(content)
        return {NAME: record(directory / NAME)}

    return spoil


def with_tensors(**tensors: torch.Tensor) -> Spoil:
    def spoil(directory: Path) -> dict[str, FileRecord]:
        save_file({name.replace("__", ":"): values for name, values in tensors.items()}, directory / NAME)
        return {NAME: record(directory / NAME)}

    return spoil


def nested_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"format_version": 2, "recipe": ' + DEEP + "}")


def safetensors_header(text: str, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text.encode()


HOSTILE_CHECKPOINTS: dict[str, Spoil] = {
    "path upwards": names("../../../secret.safetensors"),
    "absolute path": names("{outside}"),
    "path through a folder": names("rank_00000.safetensors/../../../../secret.safetensors"),
    "name with a newline": names("rank_00000.safetensors\n"),
    "empty name": names(""),
    "link to the outside": link_outside,
    "endless device": endless_device,
    "pipe that nobody writes to": pipe_without_writer,
    "folder in place of a file": folder_for_a_file,
    "claim of 4 exabytes": huge_claim,
    "no safetensors file": with_content(b"\x80\x04\x95pickle"),
    "manifest that nests without end": nested_manifest,
    "header that nests without end": with_content(safetensors_header(DEEP)),
    "header of 8 exabytes": with_content(safetensors_header("{}", claimed=2**63)),
    "tensor beyond the file": with_content(
        safetensors_header('{"master:weight:0": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}')
    ),
    "tensor too short": with_tensors(master__weight__0=torch.ones(2)),
    "tensor of two dimensions": with_tensors(master__weight__0=torch.ones(3, 3)),
    "tensor of no dimension": with_tensors(master__weight__0=torch.tensor(1.0)),
    "tensor at a negative place": with_tensors(**{"master__weight__-5": torch.ones(9)}),
    "tensor of complex numbers": with_tensors(master__weight__0=torch.ones(3, dtype=torch.int64)),
    "tensor under a name of no tensor": with_tensors(weight=torch.ones(3)),
}


@pytest.mark.parametrize("spoil", HOSTILE_CHECKPOINTS.values(), ids=HOSTILE_CHECKPOINTS.keys())
def test_a_hostile_checkpoint_is_one_clear_error(spoil: Spoil, tmp_path: Path) -> None:
    directory = whole_checkpoint(tmp_path)
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight = torch.nn.Parameter(torch.zeros(3))
    before = sorted(tmp_path.rglob("*"))
    files = spoil(directory)
    if files is not None:
        write_manifest(directory, manifest(directory, files))
    with pytest.raises((DamagedCheckpoint, BadInput)) as refused:
        load(directory, model)
    assert "\n" not in str(refused.value)
    assert str(directory) in str(refused.value)
    assert not model.weight.any()
    assert sorted(tmp_path.rglob("*")) == before


def load(directory: Path, model: torch.nn.Module) -> None:
    verify(directory)
    Checkpoint(directory).load_weights(model)


def test_the_sound_checkpoint_beside_the_hostile_ones_loads(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight = torch.nn.Parameter(torch.zeros(3))
    load(whole_checkpoint(tmp_path), model)
    assert torch.equal(model.weight, torch.ones(3))


def test_a_shape_that_no_memory_holds_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    directory = whole_checkpoint(tmp_path)
    sound = manifest(directory, {NAME: record(directory / NAME)})
    write_manifest(directory, replace(sound, shapes={"weight": [2**40, 2**20]}))
    with pytest.raises((DamagedCheckpoint, BadInput), match="weight"):
        load(directory, torch.nn.Linear(3, 1, bias=False))


# Shards


def tar_with(path: Path, name: str, **fields: object) -> Path:
    """A shard of one sound sample and a member as it should not be."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for sound in ("a.jpg", "a.cls"):
            info = tarfile.TarInfo(sound)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"0"))
        info = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(info, field, value)
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
        tar.fileobj.write(bytes(2 * tarfile.BLOCKSIZE))
    return path


@pytest.mark.parametrize(
    "member",
    [
        {"name": "b.jpg", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"name": "b.jpg", "type": tarfile.LNKTYPE, "linkname": "../../secret"},
        {"name": "b.jpg", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
        {"name": "b.jpg", "type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0},
        {"name": "b.jpg", "type": tarfile.FIFOTYPE},
        {"name": "b.jpg", "size": 2**60},
        {"name": "b.jpg", "type": tarfile.GNUTYPE_SPARSE, "size": 2**50},
        {"name": "b.jpg", "type": tarfile.GNUTYPE_LONGNAME, "size": 2**50},
        {"name": "b.jpg", "type": tarfile.XHDTYPE, "size": 2**50},
    ],
    ids=["symlink", "hard link", "character device", "block device", "fifo", "exabyte", "sparse", "long name", "pax"],
)
def test_a_tar_of_more_than_files_is_one_clear_error(member: dict, tmp_path: Path) -> None:
    path = tar_with(tmp_path / "train-00000.tar", **member)
    with pytest.raises(BadInput) as refused:
        describe_shard(path)
    assert "train-00000.tar" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", ["../../", "/", "./", "a/../../../"])
def test_a_name_that_leads_out_of_a_shard_is_only_a_label(folder: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    path = tmp_path / "train-00000.tar"
    with tarfile.open(path, "w") as tar:
        for extension in ("jpg", "cls"):
            info = tarfile.TarInfo(f"{folder}escaped.{extension}")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"0"))
    with suppress(BadInput):  # either is fine: a strange key, or a refusal
        describe_shard(path)
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/escaped.jpg").exists()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000_000), 9)  # ten thousand bytes that inflate to ten million
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    content = jpeg_bytes(photographs()["chelsea"].crop((0, 0, 64, 64)))
    frame = content.index(b"\xff\xc0") + 5
    return content[:frame] + struct.pack(">HH", height, width) + content[frame + 4 :]


@pytest.mark.parametrize("bomb", [png_claiming(60_000, 60_000), jpeg_claiming(65_500, 65_500)], ids=["png", "jpeg"])
def test_a_decompression_bomb_is_refused_by_what_it_claims(bomb: bytes) -> None:
    with pytest.raises(UndecodableImage, match="pixels"):
        decode_rgb(bomb)


# Secrets


def test_no_secret_of_environment_or_url_is_printed_or_saved(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE)
    (tmp_path / "config.json").write_text("{}")
    run = tmp_path / "run"
    with serve(shards) as store:
        store.token, url = QUERY, with_secrets(f"127.0.0.1:{store.port}")
        done = run_with_secrets(
            "pretrain",
            ["--recipe", str(tmp_path / "small.yaml"), "--ds_config", str(tmp_path / "config.json"),
             "--data", url, "--output", str(run), "tracking.tensorboard=true", f"data.path={url}"]
        )  # fmt: skip
    require_no_secret(done, run)


def test_a_password_in_a_url_is_not_shown_in_an_error(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE)
    (tmp_path / "config.json").write_text("{}")
    url = with_secrets("127.0.0.1:9/shards")
    sound = ["--recipe", str(tmp_path / "small.yaml"), "--ds_config", str(tmp_path / "config.json"), "--output", "x"]
    for wrong in (["--data", url, "data.retries=0"], [f"data.path={url}", "data.path=["], [f"data.lanes={url}"]):
        done = run_with_secrets("pretrain", [*sound, *wrong])
        assert done.returncode == 2, done.stderr
        assert MARK not in (done.stdout + done.stderr).encode()
