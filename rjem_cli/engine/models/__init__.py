"""Networks, energies, the Gaussians that chains start from, checkpoints."""
