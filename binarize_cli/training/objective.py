"""What training minimises: cross-entropy, and the distance to the float model's logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from binarize_cli.recipe import Distill
from binarize_cli.training.teacher import Teacher


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) at temperature T, the mean over images (Hinton et al. 2015).

    Both logits are [N, classes]; T^2 keeps the gradient's size whatever T is.
    """
    wanted = F.log_softmax(teacher / temperature, dim=1)
    given = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)


class Objective:
    """(1 - weight) cross-entropy + weight T^2 KL(teacher || student) + blocks times their distance.

    The first alone, whole, without a teacher.
    """

    def __init__(self, rule: Distill, teacher: Teacher | None, smoothing: float):
        self.rule, self.teacher, self.smoothing = rule, teacher, smoothing

    def __call__(self, inputs: Tensor, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Logits [N, classes], targets [N] or, after mixup, [N, classes] -> the loss, in float32."""
        logits = logits.float()
        loss = F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        if self.teacher is None:
            return loss
        weight, wanted = self.rule.weight, self.teacher(inputs, step)
        loss = (1 - weight) * loss + weight * distillation(logits, wanted, self.rule.temperature)
        if self.rule.blocks:
            assert self.teacher.blocks, "the teacher observes blocks before training starts"
            loss = loss + self.rule.blocks * self.teacher.blocks.distance()
        return loss
