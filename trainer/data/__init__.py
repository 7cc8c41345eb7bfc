"""From shards on disk to uint8 micro-batches, in an order that depends on the seed and on nothing else."""
