"""Binary inputs on a GPU in few kernels, written in Triton; what launches them, and whether it can."""
