"""From a checkpoint to pictures: the plan of a sample, the loop over batches, the writers."""
