"""Chains move images along a model's gradients: start, gradient, step, projection, noise."""
