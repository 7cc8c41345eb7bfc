"""Pre-trained encoders, wherever they come from: what a model starts from, is judged by, or is handed to others as.

::

    pretrained = load_pretrained(Path("runs/vit_base"))        # or a step_… directory, a file, a Hugging Face folder
    vit = build_vit(pretrained.config, num_classes=1000, global_pool="avg")
    load_into(vit, pretrained)
"""

from trainer.pretrained.load import load_pretrained
from trainer.pretrained.vit import build_vit, load_into
from trainer.pretrained.weights import Pretrained

__all__ = ["Pretrained", "build_vit", "load_into", "load_pretrained"]
