"""What binarization costs in training, and what a packed file costs in scoring, beside the float model."""
