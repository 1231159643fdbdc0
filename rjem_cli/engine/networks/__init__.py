"""Networks: images (B, C, H, W) in [-1, 1] to logits (B, K)."""
