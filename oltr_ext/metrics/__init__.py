"""How good a model is, closed and open. Arrays in (numpy or torch), floats out.

Open images carry label -1, rejected images prediction -1; scores are higher for known images.
"""

from __future__ import annotations

from .costs import cheapest_threshold, expected_cost, read_costs
from .fmeasure import F_RULES, f_curve, f_measure
from .open_sets import judge_open_sets
from .openset import Oscr, auroc, auroc_gain, open_set_metrics, oscr, roc_points
from .scores import SCORE_NAMES, open_scores
from .sets import PredictionSet, PredictionSets, set_coverage
from .shots import SHOT_NAMES, class_accuracy, fitting_bounds, shot_accuracy, shot_groups
from .summary import RELEASED_THRESHOLD, evaluate, evaluate_answers, json_ready
from .threshold import CALIBRATION_RULES, calibrate_threshold

__all__ = [
    "CALIBRATION_RULES",
    "F_RULES",
    "RELEASED_THRESHOLD",
    "SCORE_NAMES",
    "SHOT_NAMES",
    "Oscr",
    "PredictionSet",
    "PredictionSets",
    "auroc",
    "auroc_gain",
    "calibrate_threshold",
    "cheapest_threshold",
    "class_accuracy",
    "evaluate",
    "evaluate_answers",
    "expected_cost",
    "f_curve",
    "f_measure",
    "fitting_bounds",
    "json_ready",
    "judge_open_sets",
    "open_scores",
    "open_set_metrics",
    "oscr",
    "read_costs",
    "roc_points",
    "set_coverage",
    "shot_accuracy",
    "shot_groups",
]
