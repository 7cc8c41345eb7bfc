"""`pipe:` gives every rank as many micro-batches as the others, and no broken stream ends quietly."""

import gzip
import io
import os
import shutil
import tarfile
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.data.test_loader import GLOBAL_BATCH, IMAGE_SIZE, SEED, run_python_in_group
from trainer.data.augment import augment
from trainer.data.batches import MicroBatch
from trainer.data.config import DataConfig
from trainer.data.decode import decode_rgb
from trainer.data.errors import ShardError
from trainer.data.loader import make_loader
from trainer.data.order import Positions
from trainer.data.pipe import PipeSource
from trainer.data.reader import parse_sample, read_samples
from trainer.data.shard_index import ShardIndex
from trainer.data.source import open_source
from trainer.data.tar_members import BLOCK
from trainer.errors import BadInput
from trainer.recipe import parse_recipe

SHARD_0 = 41  # samples in the first shard


@pytest.fixture
def command(shards) -> str:
    return f"pipe:cat {shards}/train-{{00000..00005}}.tar"


def batches(path: str, rank=0, world_size=1, micro_batch=8, start=0, end=6, **changes) -> list[MicroBatch]:
    config = DataConfig(path=path, samples=64, window=8, **{"workers": 0} | changes)
    loader = make_loader(
        open_source(config, rank), config, image_size=IMAGE_SIZE, seed=SEED, global_batch=GLOBAL_BATCH,
        micro_batch=micro_batch, rank=rank, world_size=world_size, start_step=start, end_step=end,
    )  # fmt: skip
    found = list(loader)
    assert len(found) == len(loader) == (end - start) * GLOBAL_BATCH // (micro_batch * world_size)
    return found


def all_keys(found: list[MicroBatch]) -> list[str]:
    return [key for batch in found for key in batch.keys]


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_every_rank_has_its_own_samples_and_as_many(command, shards, workers):
    ranks = [batches(command, rank, 2, 4, workers=workers) for rank in range(2)]
    known = {parse_sample(raw).key for raw in read_samples(ShardIndex.open(shards), torch.arange(150).numpy())}
    for found in ranks:
        assert all(batch.images.shape == (4, 3, IMAGE_SIZE, IMAGE_SIZE) for batch in found)
        assert set(all_keys(found)) <= known
        assert len(set(all_keys(found))) > 16
    assert all_keys(ranks[0]) != all_keys(ranks[1])
    masks = [batch.mask_keys for found in ranks for batch in found]
    assert len(torch.cat(masks).unique()) == 2 * 6 * 8  # a noise of its own for each position


def test_images_labels_and_crops_belong_to_their_keys(command, shards):
    index = ShardIndex.open(shards)
    samples = {s.key: s for s in map(parse_sample, read_samples(index, torch.arange(150).numpy()))}
    positions = Positions(seed=SEED, global_batch=GLOBAL_BATCH, num_samples=64)
    found = batches(command, micro_batch=16)
    assert positions.steps_per_epoch == 4  # as the user says, whatever the shards hold
    for step, batch in enumerate(found):
        epoch, first = positions.locate(step)
        for row, key in enumerate(batch.keys):
            crop = positions.augmentation_key(epoch, first + row)
            expected = augment(decode_rgb(samples[key].image), crop, DataConfig(), IMAGE_SIZE)
            assert torch.equal(batch.images[row], expected)
            assert batch.labels[row] == samples[key].label


def test_the_same_start_draws_the_same_and_another_start_others(command):
    first = all_keys(batches(command))
    assert all_keys(batches(command)) == first
    assert all_keys(batches(command, start=6, end=12)) != first


def test_it_says_what_it_is_not(command):
    config = DataConfig(path=command, samples=64, workers=0)
    loader = make_loader(
        open_source(config, 0), config, image_size=IMAGE_SIZE, seed=0, global_batch=16, micro_batch=16, rank=0,
        world_size=1, end_step=1,
    )  # fmt: skip
    assert "NOT each sample exactly once per epoch, NOT exactly resumable" in loader.describe()


def test_the_length_of_an_epoch_must_be_given_and_only_here(command):
    with pytest.raises(BadInput, match=r"data.*pipe.*set data\.samples"):
        parse_recipe({"data": {"path": command}}, "recipe")
    with pytest.raises(BadInput, match=r"samples.*remove it"):
        parse_recipe({"data": {"path": "/shards", "samples": 5}}, "recipe")


def test_the_source_is_known_by_its_commands_without_their_secrets():
    one = PipeSource("pipe:curl https://me:pw@host/a.tar?sig=1", 100)
    assert one.content_hash == PipeSource("pipe:curl https://host/a.tar?sig=2", 100).content_hash
    assert one.content_hash != PipeSource("pipe:curl https://host/b.tar?sig=1", 100).content_hash
    assert one.content_hash != PipeSource("pipe:curl https://me:pw@host/a.tar?sig=1", 99).content_hash


def shard_0(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(shards / "train-00000.tar", tmp_path))


def ends(shards: Path) -> tuple[int, int]:
    """Where sample 20 of the first shard begins and ends."""
    first, end = ShardIndex.open(shards).offsets[20].tolist()
    return first, end


def cut_between_samples(content: bytes, first: int, end: int) -> bytes:
    return content[:first]


def cut_in_a_member(content: bytes, first: int, end: int) -> bytes:
    return content[: end - 700]


def cut_in_a_header(content: bytes, first: int, end: int) -> bytes:
    return content[: first + 100]


def garbage_header(content: bytes, first: int, end: int) -> bytes:
    return content[:first] + bytes(range(128, 256)) * 4 + content[first + BLOCK :]


def zeroed_header(content: bytes, first: int, end: int) -> bytes:
    return content[:first] + bytes(BLOCK) + content[first + BLOCK :]


def absurd_size(content: bytes, first: int, end: int) -> bytes:
    header = tarfile.TarInfo("huge.jpg")
    header.size = 2**40
    return content[:first] + header.tobuf(tarfile.GNU_FORMAT) + content[first:]


def compressed(content: bytes, first: int, end: int) -> bytes:
    return gzip.compress(content)


def nothing(content: bytes, first: int, end: int) -> bytes:
    return b""


def two_joined(content: bytes, first: int, end: int) -> bytes:
    return content + content


DAMAGE = {
    cut_between_samples: "cut off",
    cut_in_a_member: "unexpected end of data|cut off",
    cut_in_a_header: "cut off",
    garbage_header: "damaged header",
    zeroed_header: "damaged header",
    absurd_size: "'huge.jpg' claims to have 1099511627776 bytes",
    compressed: "decompress it in the command",
    nothing: "empty",
    two_joined: "data after its end",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_stream_that_is_not_a_whole_tar_is_an_error(shards, tmp_path, damage):
    path = shard_0(shards, tmp_path)
    path.write_bytes(damage(path.read_bytes(), *ends(shards)))
    with pytest.raises(
        ShardError, match=rf"pipe:cat {path}: the command ended with .* not whole: .*({DAMAGE[damage]})"
    ):
        batches(f"pipe:cat {path}", end=4 * SHARD_0 // GLOBAL_BATCH)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_command_that_fails_after_a_whole_tar_is_an_error(shards, tmp_path, workers):
    path = shard_0(shards, tmp_path)
    with pytest.raises(ShardError, match=rf"pipe:cat {path}; exit 3: the command ended with exit code 3"):
        batches(f"pipe:cat {path}; exit 3", end=20, workers=workers)


def test_a_command_that_cannot_be_run_is_an_error():
    with pytest.raises(ShardError, match="pipe:nosuchcommand: the command ended with exit code 127"):
        batches("pipe:nosuchcommand")


def test_a_loader_that_is_closed_ends_its_commands(shards, tmp_path):
    path = shard_0(shards, tmp_path)
    samples = PipeSource(f"pipe:cat {path}; sleep 1000", 64).samples(seed=0, buffer=1)
    assert next(samples)["__key__"]
    samples.close()
    gone = time.monotonic() + 30
    while any(str(path) in " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < gone
        time.sleep(0.05)


def test_a_sample_without_an_image_is_an_error(tmp_path):
    (tmp_path / "a.cls").write_text("1")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "a.cls", "a.cls")
    with pytest.raises(ShardError, match=r"shard\.tar, sample 'a': no image"):
        batches(f"pipe:cat {tmp_path}/shard.tar")


def test_an_undecodable_image_stops_the_run_or_is_passed_over_and_counted(shards, tmp_path):
    path = shard_0(shards, tmp_path)
    content = path.read_bytes()
    jpeg = content.index(b"\xff\xd8\xff", *ends(shards))
    path.write_bytes(content[:jpeg] + bytes(1000) + content[jpeg + 1000 :])
    with pytest.raises(ShardError, match=r"train-00000\.tar, sample '.*': not an image"):
        batches(f"pipe:cat {path}", end=8)
    found = batches(f"pipe:cat {path}", end=8, on_bad_sample="skip-and-substitute")
    lines = [line for batch in found for line in batch.substituted]
    assert len(lines) >= 2
    assert all("the next of the stream stands in for it" in line for line in lines)


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("files", "fault"),
    [({"a.jpg": b"junk"}, "not an image"), ({"a.txt": b"1"}, "no image"), ({"a.jpg": b"", "a.cls": b"x"}, "class")],
)
def test_a_stream_of_nothing_but_bad_samples_is_an_error_and_not_a_loop(tmp_path, files, fault):
    path = write_tar(tmp_path / "bad.tar", files)
    with pytest.raises(ShardError, match=rf"{fault}.*\(and so are the 128 before it: nothing can stand in\)"):
        batches(f"pipe:cat {path}", on_bad_sample="skip-and-substitute")


def test_a_sample_that_is_none_is_passed_over_and_those_after_it_come(shards, tmp_path):
    path = shard_0(shards, tmp_path)
    whole = path.read_bytes()
    write_tar(tmp_path / "first.tar", {"a.txt": b"1", "b.jpg": b"2", "b.cls": b"9" * 20})
    path.write_bytes((tmp_path / "first.tar").read_bytes()[: 4 * BLOCK + 2 * BLOCK] + whole)
    found = batches(f"pipe:cat {path}", end=6, on_bad_sample="skip-and-substitute")
    lines = [line for batch in found for line in batch.substituted]
    assert any("sample 'a': no image" in line for line in lines)
    assert any("sample 'b': its .cls is '99999999999999999999', not a class number" in line for line in lines)
    assert not {"a", "b"} & set(all_keys(found))


def test_tars_without_samples_are_an_error_and_not_a_loop(tmp_path):
    path = write_tar(tmp_path / "shard.tar", {"README": b"nothing here", "__meta__/info.json": b"{}"})
    with pytest.raises(ShardError, match=rf"pipe:cat {path}: its tar holds no samples"):
        batches(f"pipe:cat {path}")
    with pytest.raises(ShardError, match="holds no samples"):
        PipeSource(f"pipe:cat {path}", 64).first_samples(5)


@pytest.mark.parametrize(
    ("command", "expanded"),
    [
        ("cat a-{08..10}.tar", ["cat a-08.tar", "cat a-09.tar", "cat a-10.tar"]),
        ("cat {a,b}.tar", ["cat a.tar", "cat b.tar"]),
        ("cat ${HOME}/{1..2}.tar", ["cat ${HOME}/1.tar", "cat ${HOME}/2.tar"]),
        ("cat ${A:-x,y}.tar ${A}", ["cat ${A:-x,y}.tar ${A}"]),
        ("curl s3://b/a::b.tar", ["curl s3://b/a::b.tar"]),
        (r"sed 's/\./\{/' a\,b", [r"sed 's/\./\{/' a\,b"]),
        ("cat a |\\\n awk '{print $1}'", ["cat a |\\\n awk '{print $1}'"]),
    ],
)
def test_ranges_and_lists_are_expanded_and_the_rest_is_the_shells(command, expanded):
    assert PipeSource(f"pipe:{command}", 64).commands() == [f"pipe:{each}" for each in expanded]


def test_variables_reach_the_shell_and_no_message(shards, monkeypatch):
    monkeypatch.setenv("SHARDS", str(shards))
    monkeypatch.setenv("WDS_SHARDS", "s3cret")
    assert all_keys(batches("pipe:cat ${SHARDS}/train-{00000..00005}.tar"))
    with pytest.raises(ShardError, match=r"pipe:cat \$\{SHARDS\}/none: .* exit code 1"):
        batches("pipe:cat ${SHARDS}/none")


@pytest.mark.parametrize("command", ["cat {a", "cat a}", "cat ${HOME"])
def test_a_brace_without_its_partner_is_refused_when_the_source_is_opened(command):
    with pytest.raises(BadInput, match="a brace without its partner: close it"):
        open_source(DataConfig(path=f"pipe:{command}", samples=64), 0)


@pytest.mark.slow
def test_commands_end_when_the_training_process_is_killed(shards, tmp_path):
    pids = tmp_path / "pids"
    code = f"""
    from tests.data.test_pipe import *
    from trainer.data.loader import PipeLoader
    def main():
        command = "pipe:echo $$ >> {pids}; cat " + sys.argv[1] + "/train-00000.tar; sleep 1000"
        loader = PipeLoader(
            PipeSource(command, 64), DataConfig(path=command, samples=64, window=1, workers=2), image_size=32, seed=0,
            global_batch=16, micro_batch=16, rank=0, world_size=1, end_step=10_000,
        )
        batches = iter(loader)
        next(batches)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = run_python_in_group(code, tmp_path, shards)
    assert done.returncode == -9, done.stderr
    groups = [int(pid) for pid in pids.read_text().split()]
    assert len(groups) >= 2
    deadline = time.monotonic() + 30
    while any(runs(group) for group in groups):
        assert time.monotonic() < deadline, "a command outlived the training process"
        time.sleep(0.1)


def runs(group: int) -> bool:
    """Whether any process of a process group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_few_samples_for_a_picture_are_always_the_same(command):
    keys = [sample.key for sample in PipeSource(command, 64).first_samples(5)]
    assert len(set(keys)) == 5
    assert keys == [sample.key for sample in PipeSource(command, 64).first_samples(5)]
