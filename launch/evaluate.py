r"""Judge a representation: by its k nearest neighbours, or by linear classifiers on it.

    deepspeed launch/evaluate.py knn --init RUN --data SHARDS
    deepspeed launch/evaluate.py linear --init RUN --data SHARDS
    torchrun --nproc_per_node 8 launch/evaluate.py … (the same); python launch/evaluate.py … (one process)

--init takes whatever pre-training, export or others left: a run directory (its newest whole checkpoint), a step_…
directory, a file. --data is a folder with an index of the training shards, train.json, and one of the held-out shards,
val.json; --val names another place for these. Prints a table, which --output writes as JSON. A run directory gets an
`evaluation` event in its metrics.jsonl; nothing else in it is touched. docs/evaluation.md says what the figures mean.
Exit codes: 0 done, 2 bad input, other = crash.
"""

import argparse
import os
from pathlib import Path

from launch.command import ArgumentParser, run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # the deepspeed launcher puts it before the method
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    methods = parser.add_subparsers(dest="method", required=True, metavar="{knn,linear}")
    knn = methods.add_parser("knn", help="exact cosine k-NN, votes weighted by exp(similarity / temperature)")
    _add_common(knn)
    knn.add_argument("--k", type=_positive, nargs="+", default=[10, 20, 100, 200], help="default: 10 20 100 200")
    knn.add_argument("--temperature", type=_above_zero, nargs="+", default=[0.07], help="default: 0.07")
    _add_linear(methods.add_parser("linear", help="a sweep of linear classifiers, trained at once with LARS"))
    return parser.parse_args(arguments)


def _add_linear(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument(
        "--cached",
        action="store_true",
        help="train on features of centre crops, computed once, instead of augmented views: one pass over the data, "
        "and a lower figure; for small studies",
    )
    parser.add_argument("--epochs", type=_above_zero, default=90.0, help="default: 90")
    parser.add_argument("--warmup-epochs", type=_at_least_zero, default=10.0, help="default: 10")
    parser.add_argument(
        "--global-batch", type=_positive, default=16384, help="images per update, all ranks together; default: 16384"
    )
    parser.add_argument(
        "--rates", type=_above_zero, nargs="+", default=[0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0], metavar="RATE",
        help="base learning rates, per 256 images; default: 0.03 0.1 0.3 1 3 10 30",
    )  # fmt: skip
    parser.add_argument(
        "--norm", nargs="+", choices=["batch", "none"], default=["batch", "none"],
        help="BatchNorm without affine parameters before the classifier, or nothing; default: both",
    )  # fmt: skip
    parser.add_argument("--classes", type=_positive, help="how many, where the index of the training shards names none")
    parser.add_argument("--seed", type=int, default=0, help="of the classifiers, the order and the crops")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--init", type=Path, required=True, help="run directory, step_… directory or weights file")
    parser.add_argument("--data", required=True, help="folder with train.json and val.json; a path or a URL")
    parser.add_argument("--val", help="held-out shards elsewhere: a folder with val.json, or an index file")
    parser.add_argument("--pool", nargs="+", choices=["mean", "cls"], default=["mean", "cls"],
                        help="mean of the patch tokens, class token; default: both")  # fmt: skip
    parser.add_argument("--batch", type=_positive, default=64, help="images per forward of a rank; default: 64")
    parser.add_argument("--workers", type=_positive, default=4, help="decoding threads of a rank; default: 4")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the encoder")
    parser.add_argument("--max-train", type=_positive, help="take so many training samples, evenly; default: all")
    parser.add_argument("--max-val", type=_positive, help="the same for held-out samples")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"give a positive integer, not {text!r}")
    return int(text)


def _above_zero(text: str) -> float:
    number = _number(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"give a number above 0, not {text!r}")
    return number


def _at_least_zero(text: str) -> float:
    number = _number(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"give a number, 0 or above, not {text!r}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def main() -> int:
    arguments = parse_arguments()
    from trainer.ranks import resolve_ranks

    ranks = resolve_ranks(os.environ)
    from trainer.evaluation.command import evaluate  # imports torch and DeepSpeed

    return evaluate(arguments, ranks)


if __name__ == "__main__":
    run_command(main)
