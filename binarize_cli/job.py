"""What is asked of a run: the job that the command line, a comparison or a program hands to the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from binarize_cli.models.names import HeadChoice, ModelName
from binarize_cli.recipe import Recipe
from binarize_cli.run_folder import Resume


@dataclass(frozen=True)
class Job:
    """A model to binarize, by a recipe, with some data; where to put what comes of it."""

    command: str
    """The command line that does the same, for the report."""
    model: ModelName
    recipe: Recipe
    dataset: str | None = None
    data_dir: Path | None = None
    weights: Path | None = None
    pretrained: bool = True
    num_classes: int | None = None
    head: HeadChoice = "auto"
    img_size: int | None = None
    output: Path | None = None
    device: str = "auto"
    workers: int | None = None
    cache_gb: float = 4.0
    teacher_weights: Path | None = None
    """Weights of the recipe's `distill.teacher`; None for its library's."""
    teacher_logits: Path | None = None
    resume: Resume = "never"
    save_minutes: float = 10.0
    compile: str | None = None
    """The mode of torch.compile, `default` or `reduce-overhead`; None trains operator by operator."""
    parallel: str = "ddp"
    """How several ranks train: `ddp` or `fsdp`."""
    deterministic: bool = False
    overwrite: bool = False
    skip_unreadable: bool = False
    show_images: bool = False
    """Whether the report shows images whose answer changed: only if their licence allows that."""

    @property
    def run_name(self) -> str:
        """The name of the run's folder, unless `output` gives another."""
        return f"{self.model.short}-{self.recipe.method}-{self.recipe.task}"
