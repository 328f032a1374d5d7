"""Progress of training: a live line on a terminal, plain timestamped lines in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from binarize_cli.console import live, say, stderr
from binarize_cli.training.log import EpochRow

PLAIN_EVERY = 30.0  # seconds between progress lines in a log
SPEED_OVER = 600.0  # seconds the speed is averaged over: in 30, one evaluation would outweigh the steps


class Display:
    """Shows steps as they pass and keeps a line for every epoch."""

    def __init__(self, stage: str, steps: int, done: int):
        self.stage, self.steps = stage, steps
        self.accuracy = self.loss = ""
        self.printed = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=stderr(),
            speed_estimate_period=SPEED_OVER,
        )
        self.task = self.progress.add_task(stage, total=steps, completed=done, facts="")

    def __enter__(self) -> Display:
        if live():
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if live():  # it would end with an empty line
            self.progress.stop()

    def step(
        self,
        number: int,
        loss: float | None,
        images_per_second: float,
        parameters: Mapping[str, float],
        hard: bool,
    ) -> None:
        """Show a step: its number (from 1), loss, speed, the method's parameters, whether F is sign.

        A loss that is not known yet leaves the one before in its place.
        """
        self.loss = self.loss if loss is None else f"loss {loss:.4f}  "
        speed = f"{images_per_second:.0f} images/s"
        facts = f"{self.loss}{speed}  {_shown(parameters, hard)}  {self.accuracy}"
        self.progress.update(self.task, completed=number, facts=facts)
        if not live() and time.monotonic() - self.printed >= PLAIN_EVERY:
            self.printed = time.monotonic()
            left = self.progress.tasks[0].time_remaining
            say(
                f"{self.stage} step {number}/{self.steps}  {facts}" + (f"  {left:.0f} s left" if left else "")
            )

    def epoch(self, row: EpochRow, epochs: int) -> None:
        """Show an epoch that was scored."""
        soft = f"soft {row.soft_top1:.2f}  " if row.stage == "binary" else ""
        name = "hard" if row.stage == "binary" else "top-1"
        self.accuracy = f"{soft}{name} {row.hard_top1:.2f}"
        parts = [
            f"{self.stage} epoch {row.epoch}/{epochs}",
            "" if row.loss is None else f"loss {row.loss:.4f}",
            self.accuracy,
            "" if row.flip_ratio is None else f"flips {100 * row.flip_ratio:.2f}%",
            _shown(row.parameters, row.hard),
            f"{row.seconds:.1f} s" if row.seconds else "",
            f"{row.images_per_second:.0f} images/s" if row.seconds else "",
        ]
        say(fitting(parts, stderr().width if live() else None))


def fitting(parts: Sequence[str], width: int | None) -> str:
    """Return the parts in a line; the last ones are left out of a terminal that is too narrow for them."""
    shown = [part for part in parts if part]
    while width is not None and len(shown) > 1 and len("  ".join(shown)) > width:
        shown.pop()
    return "  ".join(shown)


def _shown(parameters: Mapping[str, float], hard: bool) -> str:
    """Return the parameters for people: `mu=30`, and `F=sign` if it is."""
    return " ".join([f"{name}={value:.4g}" for name, value in parameters.items()] + ["F=sign"] * hard)
