"""What a program asks its launcher: printed as JSON, a line for each rank."""

import json
import os

from trainer.ranks import resolve_ranks

if __name__ == "__main__":
    print(json.dumps([os.environ.get("CUDA_VISIBLE_DEVICES"), vars(resolve_ranks(os.environ))]), flush=True)
