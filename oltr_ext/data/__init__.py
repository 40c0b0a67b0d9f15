"""Data sets of images and of embeddings, sample streams and image transforms."""

from oltr_ext.data.decode import DECODE_ERRORS, read_image
from oltr_ext.data.embedding_writer import FeatureStream, write_embeddings
from oltr_ext.data.embeddings import Embeddings, read_embeddings
from oltr_ext.data.held_out import hold_out
from oltr_ext.data.lists import ImageList, ListLine, read_list, read_names
from oltr_ext.data.published import PUBLISHED, Published
from oltr_ext.data.samplers import BalancedSampler, ClassAwareSampler, Sampler, ShuffleSampler
from oltr_ext.data.tensors import TensorImages
from oltr_ext.data.transforms import Augment, icon_image, imagenet_test, imagenet_train

__all__ = [
    "DECODE_ERRORS",
    "PUBLISHED",
    "Augment",
    "BalancedSampler",
    "ClassAwareSampler",
    "Embeddings",
    "FeatureStream",
    "ImageList",
    "ListLine",
    "Published",
    "Sampler",
    "ShuffleSampler",
    "TensorImages",
    "hold_out",
    "icon_image",
    "imagenet_test",
    "imagenet_train",
    "read_embeddings",
    "read_image",
    "read_list",
    "read_names",
    "write_embeddings",
]
