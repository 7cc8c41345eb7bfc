"""LocalMIM pre-training of Vision Transformers on DeepSpeed ZeRO, with progressive layer freezing (2312.02194)."""
