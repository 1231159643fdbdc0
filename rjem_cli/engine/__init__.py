"""Everything that rjem does, for Python. It never prints, and reports its progress through callbacks.

    data        images as uint8 (N, C, H, W) with labels: built-in sets, class folders, archives
    models      wide residual networks, energies, the Gaussians that chains start from, checkpoints, custom networks
    attacks     PGD, APGD, AutoAttack; robust accuracy
    sampling    SGLD, the pipeline start >> attack >> contrast >> SGLD, samples by seed, writers
    training    the loss, the replay buffer, a training step, a run from its first step to its last
    metrics     FID, IS, KID, precision and recall of samples; accuracy, calibration, OOD detection of classifiers
    compare     checkpoints and samples in one table; the paper's Table 1
    inference   a network that is ready to sample, attack and score
    runtime     device, precision, compilation; distributed: several processes; batching: batches that fit into memory

README has an example each for training, sampling and scoring. x is float in [-1, 1]; pixels are uint8.
"""
