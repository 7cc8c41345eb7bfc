"""One portable, atomic training state, independent of world size and ZeRO stage.

::

    RUN/checkpoints/
        latest                       name of the newest checkpoint
        step_00001234/
            manifest.json            step, frozen units, recipe, index hash, engine state, every file's size and sha256
            rank_00000.safetensors   the fragments that rank 0 owned: fp32 masters, moments, frozen weights
            rank_00001.safetensors   …

`manifest` says what a checkpoint is and whether it is whole, `writer` saves one from all ranks, `reader` puts one back
into a model and an engine.
"""
