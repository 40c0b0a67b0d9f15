"""Layers, losses and heads on top of `oltr_ext.ops`."""

from oltr_ext.nn.attention import ModulatedAttention
from oltr_ext.nn.classifiers import CosineClassifier, MetaEmbedding, MetaEmbeddingClassifier
from oltr_ext.nn.heads import HeadOutput, LinearHead, OLTRHead
from oltr_ext.nn.losses import DiscCentroidsLoss
from oltr_ext.nn.memory import CentroidMemory
from oltr_ext.nn.scores import open_score

__all__ = [
    "CentroidMemory",
    "CosineClassifier",
    "DiscCentroidsLoss",
    "HeadOutput",
    "LinearHead",
    "MetaEmbedding",
    "MetaEmbeddingClassifier",
    "ModulatedAttention",
    "OLTRHead",
    "open_score",
]
