"""bnnpp: pretrained image classifiers into 1-bit networks, by ProxConnect++ (Lu et al., NeurIPS 2023).

This package is the code, in rooms; `import bnnpp` is the library: the names that stay as they are.
"""

__version__ = "0.1.0"
