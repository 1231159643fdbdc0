"""How good samples are: features of images, and what distances and neighbours in feature space say."""
