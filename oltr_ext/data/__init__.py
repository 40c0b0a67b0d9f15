"""Data sets of images and of embeddings, sample streams and image transforms."""

from oltr_ext.data.augment import GENTLE, Augment
from oltr_ext.data.decode import ImageError, read_image, read_rgb
from oltr_ext.data.embedding_writer import FeatureStream, write_embeddings
from oltr_ext.data.embeddings import Embeddings, read_embeddings
from oltr_ext.data.faiss_index import from_faiss, to_faiss
from oltr_ext.data.held_out import hold_out
from oltr_ext.data.lists import ImageList, ListLine, read_list, read_names
from oltr_ext.data.published import PUBLISHED, Published
from oltr_ext.data.samplers import BalancedSampler, ClassAwareSampler, Sampler, ShuffleSampler
from oltr_ext.data.tensors import TensorImages
from oltr_ext.data.transforms import (
    Recipe,
    eval_transform,
    icon_image,
    network_input,
    square,
    train_transform,
)

__all__ = [
    "GENTLE",
    "PUBLISHED",
    "Augment",
    "BalancedSampler",
    "ClassAwareSampler",
    "Embeddings",
    "FeatureStream",
    "ImageError",
    "ImageList",
    "ListLine",
    "Published",
    "Recipe",
    "Sampler",
    "ShuffleSampler",
    "TensorImages",
    "eval_transform",
    "from_faiss",
    "hold_out",
    "icon_image",
    "network_input",
    "read_embeddings",
    "read_image",
    "read_list",
    "read_names",
    "read_rgb",
    "square",
    "to_faiss",
    "train_transform",
    "write_embeddings",
]
