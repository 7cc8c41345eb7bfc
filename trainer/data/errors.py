"""What the loader raises once training is under way."""

from trainer.errors import BadInput


class ShardError(BadInput):
    """A shard does not hold what the index promises: missing, truncated, rewritten, or with an image that nothing can
    decode. The one-line message names the shard, the byte range, the sample's key where it could be read, and the
    mend."""


class WorkerFailed(RuntimeError):
    """A decoding process died, or raised what it should not have; the cause is chained."""
