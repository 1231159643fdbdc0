"""Networks, energies, the class prior, checkpoints."""
