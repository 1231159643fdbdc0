"""PGD and APGD, and the accuracy of a network under attack."""
