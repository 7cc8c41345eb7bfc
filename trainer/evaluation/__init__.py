"""How good is a representation: k-NN and linear probes on frozen features, on any number of ranks or in one process.

::

    vit = build_vit(pretrained.config, num_classes=0)           # trainer.pretrained
    load_into(vit, pretrained)
    encoder = Encoder(vit, device)
    train = extract_features(encoder, ShardIndex.open(SHARDS, "train"), batch=256)
    held_out = extract_features(encoder, ShardIndex.open(SHARDS, "val"), batch=256)
    knn_accuracies(train, held_out, ks=[20], temperatures=[0.07])
    probe_cached(train, held_out, ProbeSettings(epochs=50))

Without a process group every function is of one process; with one, all ranks call it with the same arguments.
"""
