"""Training: the objective, the replay buffer, the loop, and what a run writes."""
