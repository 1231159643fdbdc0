"""Everything that rjem does, for Python: it never prints, never parses, and tells of its progress by callbacks.

    data        images as uint8 (N, C, H, W) with labels: built-in sets, class folders, archives
    model       wide residual networks, energies, the prior, checkpoints, networks of your own
    chains      PGD and SGLD as moves, and their composition: prior >> attack >> contrast >> sgld
    training    the objective, the replay buffer, a run from its first step to its last
    sampling    samples by seed, and where they go
    evaluation  accuracy, attacks, calibration, out-of-distribution scores of a checkpoint
    quality     FID, IS, KID, precision and recall of samples, by whose features
    report      what is measured as documents and figures
    comparison  many of them in one table
    runtime     device, arithmetic, compilation; ranks: the processes of one job; batches: batches that fit into memory

README has an example each for training, sampling and scoring. x is float in [-1, 1]; pixels are uint8.
"""
