"""What a trained model's prediction sets go by: its answers for the validation images, and how
frequent it takes classes to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from oltr_ext.config.schema import Config, FitStage
from oltr_ext.engine.build import class_frequencies, prior_power
from oltr_ext.engine.evaluate import Outputs
from oltr_ext.metrics import SHOT_NAMES, shot_groups
from oltr_ext.nn import Head, PriorHead
from oltr_ext.nn.sets import set_thresholds

__all__ = ["Calibration", "thresholds_of"]


@dataclass
class Calibration:
    """The validation images of known classes, as far as sets go by them: 8 bytes an image."""

    log_prob: Tensor
    """(n,) float32, of the true class."""
    target: Tensor
    """(n,) int32."""

    @staticmethod
    def of(seen: Outputs) -> Calibration:
        """Of answers that say the log-probability of the true class."""
        assert seen.true is not None
        known = seen.target >= 0
        target = torch.from_numpy(seen.target[known].astype(np.int32))
        return Calibration(torch.from_numpy(seen.true[known]), target)

    @staticmethod
    def read(tensors: Mapping[str, Tensor]) -> Calibration | None:
        """From the tensors of a checkpoint; None where it is from before there were sets."""
        if "sets.log_prob" not in tensors:
            return None
        return Calibration(tensors["sets.log_prob"], tensors["sets.target"])

    def without(self, classes: Sequence[int]) -> Calibration:
        """Without the images of some classes."""
        stay = ~torch.isin(self.target, torch.tensor(classes, dtype=torch.int32))
        return Calibration(self.log_prob[stay], self.target[stay])

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"sets.log_prob": self.log_prob, "sets.target": self.target}


def thresholds_of(
    method: str,
    alpha: float,
    held: Calibration,
    head: Head,
    config: Config,
    train_counts: list[int],
) -> Tensor:
    """(C,) as `set_thresholds`, for a trained model: the groups of ``shots`` are few-, medium- and
    many-shot classes."""
    masks = shot_groups(train_counts, config.data.shots)
    groups = np.select([masks[name] for name in SHOT_NAMES[::-1]], [0, 1, 2])
    return set_thresholds(
        method,
        alpha,
        held.log_prob,
        held.target,
        len(train_counts),
        groups=torch.from_numpy(groups),
        prevalence=_prevalence(head, config, train_counts),
    )


def _prevalence(head: Head, config: Config, train_counts: list[int]) -> Tensor:
    """(C,) how frequent classes are where a head's probabilities hold: as in what it was trained
    on, or alike where it was made so, less the share of a class prior that is taken off."""
    last = config.stage1 if config.stage2 is None else config.stage2
    fitted = isinstance(last, FitStage)
    power = float((config.stage1 if fitted else last).sampler == "shuffle")
    if isinstance(last, FitStage) and last.kind in ("tau_norm", "ncm"):
        power = 0.0
    if isinstance(head, PriorHead) and head.class_prior is not None:
        power -= prior_power(last) * (1 - float(head.prior_share))
    expected = class_frequencies(train_counts).double() ** power
    return expected / expected.sum()
