"""bnnpp: pretrained image classifiers into 1-bit networks, by ProxConnect++ (Lu et al., NeurIPS 2023)."""

__version__ = "0.1.0"
