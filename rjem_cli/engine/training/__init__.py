"""Training: the objective, the replay buffer, the loop and what it leaves on disk."""
