"""`python -m binarize_cli`, for torchrun and for machines where the package is not installed."""

from binarize_cli.cli import main

if __name__ == "__main__":
    main()
