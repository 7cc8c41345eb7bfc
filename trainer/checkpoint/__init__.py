"""One portable, atomic training state, independent of world size and ZeRO stage.

::

    RUN/checkpoints/
        latest                       name of the newest checkpoint, for people
        step_00001234/
            manifest.json            step, frozen units, recipe, index hash, engine state, every file's size and sha256
            rank_00000.safetensors   the fragments that rank 0 owned: fp32 masters, moments, frozen weights
            rank_00001.safetensors   …

To write one: `background` (while training goes on) → `host_memory` (the copy) → `writer` (all ranks, atomic) →
`state_file` (safetensors as a stream). To read one: `find` (the newest whole one) → `manifest` (what it is, and whether
it is whole) → `gather` (from several machines' own disks to each of them) → `reader` (back into a model and an engine),
or `consolidated` (one fp32 file for others).
docs/checkpoints.md describes the format.
"""
