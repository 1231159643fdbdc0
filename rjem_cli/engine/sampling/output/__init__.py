"""Where samples go: a folder, a .npz, a .tar or a tar stream; each goes on where an interrupted call stopped."""
