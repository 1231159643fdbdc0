"""Output formats of samples: a folder, .npz, .tar, and a tar stream."""
