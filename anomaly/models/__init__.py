"""Models of event sequences: batches, backbones, heads, the training loop, and the estimators built of them."""
