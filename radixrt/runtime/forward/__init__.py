"""One step on the device: from a plan to arrays, a forward pass and sampled tokens."""
