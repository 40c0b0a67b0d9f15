"""Layers, losses and heads on top of `oltr_ext.ops`."""

from oltr_ext.nn.attention import ModulatedAttention
from oltr_ext.nn.classifiers import CosineClassifier, MetaEmbedding, MetaEmbeddingClassifier
from oltr_ext.nn.feature_bank import FeatureBank
from oltr_ext.nn.fslwf import FSLwFHead
from oltr_ext.nn.heads import Best, Head, HeadOutput, PriorHead
from oltr_ext.nn.linear_head import LinearHead
from oltr_ext.nn.losses import DiscCentroidsLoss, FocalLoss, LiftedStructureLoss, RangeLoss
from oltr_ext.nn.memory import CentroidMemory
from oltr_ext.nn.oltr_head import OLTRHead
from oltr_ext.nn.openmax import OpenMaxHead, fit_weibull
from oltr_ext.nn.rebalance import (
    LWSHead,
    best_tau,
    class_directions,
    logit_adjusted_bias,
    prior_share,
    tau_normalise,
)
from oltr_ext.nn.roster import ClassEntry, Roster
from oltr_ext.nn.scores import all_scores, entropy_score, logit_scores, open_score
from oltr_ext.nn.shard_classes import shard_classes
from oltr_ext.nn.sharded_training import GradScaler, clip_grad_norm_, param_groups

__all__ = [
    "Best",
    "CentroidMemory",
    "ClassEntry",
    "CosineClassifier",
    "DiscCentroidsLoss",
    "FSLwFHead",
    "FeatureBank",
    "FocalLoss",
    "GradScaler",
    "Head",
    "HeadOutput",
    "LWSHead",
    "LiftedStructureLoss",
    "LinearHead",
    "MetaEmbedding",
    "MetaEmbeddingClassifier",
    "ModulatedAttention",
    "OLTRHead",
    "OpenMaxHead",
    "PriorHead",
    "RangeLoss",
    "Roster",
    "all_scores",
    "best_tau",
    "class_directions",
    "clip_grad_norm_",
    "entropy_score",
    "fit_weibull",
    "logit_adjusted_bias",
    "logit_scores",
    "open_score",
    "param_groups",
    "prior_share",
    "shard_classes",
    "tau_normalise",
]
