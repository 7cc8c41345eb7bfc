"""What a run will need and move, worked out from its recipe before anything runs; no GPU, no ranks, no DeepSpeed."""
