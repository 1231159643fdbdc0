"""Training: the loss, the replay buffer, the loop, and what a run writes."""
