"""Shards in an S3 bucket give the batches that they give from disk, or one error that names them."""

from collections.abc import Iterator

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from tests.data.test_faults import VICTIM
from tests.data.test_loader import MAKE_LOADER, STEPS_PER_EPOCH, make_loader, run_python_in_group
from tests.data.test_remote import assert_same, epoch
from trainer.data.errors import ShardError
from trainer.data.reader import read_samples
from trainer.data.shard_index import ShardIndex
from trainer.data.storage import Storage
from trainer.errors import BadInput

PREFIX = "sets/tiles #1"


@pytest.fixture(scope="module")
def bucket(shards) -> Iterator[str]:
    """The URL of a folder of shards on an S3-compatible server. The endpoint comes from the environment, as it does
    for every tool of AWS."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        for path in shards.iterdir():
            client.upload_file(str(path), "bucket", f"{PREFIX}/{path.name}")
        yield f"s3://bucket/{PREFIX}"
    server.stop()


def test_batches_are_those_from_disk(bucket, shards):
    assert_same(epoch(bucket), epoch(shards))


@pytest.mark.slow
def test_workers_read_from_the_bucket_too(bucket, shards, tmp_path):
    """In a process of its own: the server that forks the workers keeps the environment that it was started in."""
    code = f"""{MAKE_LOADER}
    def main():
        batches = list(make_loader({bucket!r}, workers=2, end={STEPS_PER_EPOCH}))
        print(*(key for batch in batches for key in batch.keys), sep="\\n")
    """
    done = run_python_in_group(code, tmp_path, shards)
    assert done.stdout.split() == [key for batch in make_loader(shards, end=STEPS_PER_EPOCH) for key in batch.keys]
    assert done.stderr == ""


def test_missing_things_are_named_before_training(bucket):
    with pytest.raises(BadInput, match=r"no shard index: s3://bucket/nothing/train.json cannot be read: No such file"):
        ShardIndex.open("s3://bucket/nothing")
    with pytest.raises(BadInput, match=r"no shard index: s3://nobody/x/train.json cannot be read"):
        ShardIndex.open("s3://nobody/x")


def test_a_rewritten_object_is_noticed(bucket, shards, tmp_path):
    client = boto3.client("s3")
    index, storage = ShardIndex.open(bucket), Storage()
    samples = np.arange(60, 64)
    expected = read_samples(ShardIndex.open(shards), samples)
    assert [raw.content for raw in read_samples(index, samples, storage)] == [raw.content for raw in expected]
    content = bytearray((shards / VICTIM).read_bytes())
    content[-1] ^= 1
    try:
        client.put_object(Bucket="bucket", Key=f"{PREFIX}/{VICTIM}", Body=bytes(content))
        with pytest.raises(ShardError, match=rf"{VICTIM}, bytes \d+-\d+: the shard was rewritten during the run"):
            read_samples(index, samples, storage)
        client.put_object(Bucket="bucket", Key=f"{PREFIX}/{VICTIM}", Body=bytes(content[:-512]))
        with pytest.raises(ShardError, match=rf"{VICTIM}, bytes \d+-\d+: the shard is truncated"):
            read_samples(index, samples, storage)
        client.delete_object(Bucket="bucket", Key=f"{PREFIX}/{VICTIM}")
        with pytest.raises(ShardError, match=rf"{VICTIM}, bytes \d+-\d+ cannot be read: No such file"):
            read_samples(index, samples, storage)
        with pytest.raises(BadInput, match=rf"shard s3://bucket/.*{VICTIM} cannot be read: No such file"):
            ShardIndex.open(bucket)
    finally:
        client.upload_file(str(shards / VICTIM), "bucket", f"{PREFIX}/{VICTIM}")


def test_no_credentials_are_an_error_at_once(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(BadInput, match="Unable to locate credentials"):
        ShardIndex.open(bucket)
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_endpoint_that_is_down_is_one_error(bucket, shards, monkeypatch):
    index = ShardIndex.open(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(
        ShardError, match=rf"s3://bucket/{PREFIX}/train-\d+.tar, bytes \d+-\d+ cannot be read.*attempts"
    ):
        read_samples(index, np.arange(4), Storage(retries=1, timeout=1.0))
    s3fs.S3FileSystem.clear_instance_cache()
