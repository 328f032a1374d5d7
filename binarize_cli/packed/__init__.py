"""The packed file: bits to tensors and back, the format, and the network rebuilt from it."""
