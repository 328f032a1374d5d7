"""The command `bnnpp`; also `python -m binarize_cli`, for torchrun and where the package is not installed."""

import contextlib
import signal


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback from the first import on."""
    with contextlib.suppress(ValueError):  # not the main thread: somebody else minds the signals
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from binarize_cli.cli import main as run

    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
