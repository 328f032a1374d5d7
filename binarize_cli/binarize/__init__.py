"""Which layers of a network become binary, and the layers that replace them."""
