"""A trained file or a float model -> what each binary layer costs, and which to keep float."""
