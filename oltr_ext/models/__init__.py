"""Backbones and the model that joins one with a head."""

from oltr_ext.models.backbones import build_backbone, wants
from oltr_ext.models.model import OLTRModel, feature_layer
from oltr_ext.models.pixels import Wants

__all__ = ["OLTRModel", "Wants", "build_backbone", "feature_layer", "wants"]
