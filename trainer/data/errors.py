"""What the loader raises once training is under way."""

from trainer.errors import BadInput


class ShardError(BadInput):
    """A shard does not hold what the index promises, or cannot be read: missing, truncated, rewritten, out of reach.
    The one-line message names the shard, the byte range and, where it could be read, the sample's key, and the mend."""


class BadSample(ShardError):
    """One sample of a shard that can be read is damaged or not decodable. `data.on_bad_sample` decides what follows."""


class WorkerFailed(RuntimeError):
    """A decoding process died, or raised what it should not have; the cause is chained."""
