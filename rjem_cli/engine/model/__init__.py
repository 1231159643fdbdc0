"""The network, its energies and the prior that chains start from."""
