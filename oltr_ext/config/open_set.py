"""How a model tells the unknown: keys of `open_set`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from oltr_ext.config.augment_keys import Strict

Count = Annotated[int, Field(ge=1)]


class OpenSet(Strict):
    """How the threshold for "unknown" is found, on validation data. The scores are those of
    `oltr_ext.nn.open_score`, and of `oltr_ext.nn.FeatureBank`."""

    score: Literal[
        "auto",
        "max_softmax",
        "max_logit",
        "energy",
        "nearest_distance",
        "reachability",
        "openmax",
        "mahalanobis",
        "nearest_feature",
        "max_logit+mahalanobis",
        "max_logit+nearest_feature",
        "gen",
        "relative_mahalanobis",
        "knn",
        "vim",
        "max_logit+relative_mahalanobis",
        "max_logit+relative_mahalanobis+nearest_feature",
    ] = "auto"
    # auto: the last, unless another's AUROC on open_val is higher by more than one standard error;
    # max_softmax where there is no open_val
    rule: Literal["known_recall", "f_measure", "balanced"] = "known_recall"
    value: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of known_recall
    # Training features that a model keeps for nearest_feature and knn, 4 bytes a number; of more,
    # the largest classes keep as many each as fit. None: as many as 268 MB hold; 0: none.
    features: Annotated[int, Field(ge=0)] | None = None
    # k of knn. None: half the images of the rarest class, but 2 to 50
    neighbours: Count | None = None
