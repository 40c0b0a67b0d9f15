"""Backbones and the model that joins one with a head."""

from oltr_ext.models.backbones import build_backbone
from oltr_ext.models.model import OLTRModel, feature_layer

__all__ = ["OLTRModel", "build_backbone", "feature_layer"]
