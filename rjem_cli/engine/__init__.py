"""The core: data, models, chains, training, sampling, evaluation. It never prints; progress goes out by callback."""
