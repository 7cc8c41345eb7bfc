"""Turn a checkpoint into a file or folder for others.

    python launch/export.py --checkpoint RUN --format fp32 --output model.safetensors
    python launch/export.py --checkpoint RUN --format timm --output encoder.safetensors
    python launch/export.py --checkpoint RUN --format full --output localmim.safetensors
    python launch/export.py --checkpoint RUN --format huggingface --output my_vit

RUN is a run directory, whose newest whole checkpoint is taken, or a step_… directory; for all but fp32 also a file or
folder that `launch/pretrain.py --init` takes, LocalMIM's and MAE's for instance. One process, no GPU. Formats, all of
them fp32 safetensors:

    fp32         every parameter, frozen ones too, under its name in trainer.model.localmim.LocalMIM
    timm         the encoder, for timm.create_model('vit_base_patch16_224', num_classes=0) or what its shape demands
    full         encoder, norms and decoders under the names of LocalMIM's own checkpoints
    huggingface  a folder for the Hugging Face Hub: the encoder, config.json, a model card

docs/export.md has an example of reading each; launch/pretrain.py --init reads all of them back. DeepSpeed's universal
checkpoint is not among them: docs/checkpoints.md says why, and how to read checkpoints yourself.
Exit codes: 0 done, 2 bad input (a damaged checkpoint, or an output that exists or cannot be written).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from launch.command import ArgumentParser, run_command


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run, a step_… directory; see above")
    parser.add_argument("--format", choices=sorted(FORMATS), required=True, help="see above")
    parser.add_argument("--output", type=Path, required=True, help="what to write; it appears whole or not at all")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse_arguments()
    from trainer.errors import BadInput

    output = arguments.output
    if output.exists() and not arguments.overwrite:
        raise BadInput(f"--output {output}: exists; choose another, or add --overwrite")
    source, size, use = FORMATS[arguments.format](arguments.checkpoint, output)
    print(f"{output}: {source} as {arguments.format}, {size / 1e6:.1f} MB")
    if use:
        print(f"read it with {use}")
    return 0


Written = tuple[str, int, str]
"""What was taken, the bytes that were written of it, and Python that reads them where load_file alone does not do."""


def _fp32(checkpoint: Path, output: Path) -> Written:
    from trainer.checkpoint.consolidated import write_consolidated
    from trainer.checkpoint.find import checkpoints_at, newest_whole
    from trainer.checkpoint.manifest import DamagedCheckpoint, verify
    from trainer.checkpoint.reader import Checkpoint
    from trainer.errors import BadInput

    try:
        directory = newest_whole(checkpoints_at(checkpoint, "--checkpoint"), print, verify)
        return directory.name, write_consolidated(Checkpoint(directory), output), ""
    except DamagedCheckpoint as error:
        raise BadInput(f"--checkpoint: {error}; give another") from None


def _timm(checkpoint: Path, output: Path) -> Written:
    from trainer.pretrained import load_pretrained
    from trainer.pretrained.export import write_timm
    from trainer.pretrained.timm_model import timm_model

    pretrained = load_pretrained(checkpoint)
    use = timm_model(pretrained.config, pretrained.source).call(f"checkpoint_path={str(output)!r}")
    return pretrained.source, write_timm(pretrained, output), use


def _full(checkpoint: Path, output: Path) -> Written:
    from trainer.pretrained import load_pretrained
    from trainer.pretrained.export import write_full

    pretrained = load_pretrained(checkpoint)
    return pretrained.source, write_full(pretrained, output), ""


def _huggingface(checkpoint: Path, output: Path) -> Written:
    from trainer.pretrained import load_pretrained
    from trainer.pretrained.huggingface import write_huggingface

    pretrained = load_pretrained(checkpoint)
    use = f"timm.create_model('local-dir:{output}', pretrained=True)"
    return pretrained.source, write_huggingface(pretrained, output), use


FORMATS: dict[str, Callable[[Path, Path], Written]] = {
    "fp32": _fp32,
    "timm": _timm,
    "full": _full,
    "huggingface": _huggingface,
}
"""--format → what writes (checkpoint, output)."""


if __name__ == "__main__":
    run_command(main)
