"""The generated blocks of the documentation: one file a kind, which also keeps what it is made of."""
