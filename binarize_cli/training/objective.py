"""What training minimises: cross-entropy, and the distance to the float model's logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize_cli.recipe import Distill


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) at temperature T, the mean over images (Hinton et al. 2015).

    Both logits are [N, classes]; T^2 keeps the gradient's size whatever T is.
    """
    wanted = F.log_softmax(teacher / temperature, dim=1)
    given = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)


class Objective:
    """(1 - weight) cross-entropy + weight T^2 KL(teacher || student); the first alone without a teacher."""

    def __init__(self, rule: Distill, teacher: nn.Module | None, smoothing: float):
        self.rule, self.teacher, self.smoothing = rule, teacher, smoothing
        if teacher is not None:
            teacher.eval().requires_grad_(False)

    def __call__(self, inputs: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits [N, classes], targets [N] or, after mixup, [N, classes] -> the loss, in float32."""
        logits = logits.float()
        loss = F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        if self.teacher is None or self.rule.weight == 0:
            return loss
        with torch.no_grad():
            wanted = self.teacher(inputs).float()
        weight = self.rule.weight
        return (1 - weight) * loss + weight * distillation(logits, wanted, self.rule.temperature)
