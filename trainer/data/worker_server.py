"""What the server process that forks the decoding workers imports, and nothing else may: it changes signal handling.

A scheduler or a launcher that wants a run to stop often signals all of its processes, and the training process then
still needs batches until it has finished its step and saved. So the server lives as long as the training process does,
whose end it notices by itself, and hands on to the workers that Ctrl-C and SIGUSR1 mean nothing to them."""

import signal

# Imported once here, they are there in every worker at once.
import trainer.data.lane_shares
import trainer.data.workers  # noqa: F401

for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(_number, signal.SIG_IGN)
