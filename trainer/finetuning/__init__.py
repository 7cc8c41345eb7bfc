"""Fine-tuning: a pre-trained ViT becomes a classifier, on the engine, the data and the checkpoints of pre-training."""
