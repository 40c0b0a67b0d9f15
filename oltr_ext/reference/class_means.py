from __future__ import annotations

import torch
from torch import Tensor

from oltr_ext.reference._common import check_labels, widen


def class_means(x: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums by index_add, divided by the counts; zero for an empty class.

    Raises:
        RuntimeError: a target outside [0, num_classes).
    """
    check_labels("class_means", target, num_classes)
    (wide,) = widen(x)
    counts = torch.bincount(target, minlength=num_classes)
    sums = wide.new_zeros(num_classes, x.shape[1]).index_add(0, target, wide)
    return (sums / counts.clamp(min=1).unsqueeze(1)).to(x.dtype), counts
