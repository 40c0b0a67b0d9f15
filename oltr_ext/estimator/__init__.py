"""A classifier with scikit-learn's conventions on features: `OLTRClassifier`."""

from oltr_ext.estimator.classifier import OLTRClassifier

__all__ = ["OLTRClassifier"]
