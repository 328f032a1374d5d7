"""Forward and backward quantizers as pure functions of (x, progress), and the registry of methods."""
