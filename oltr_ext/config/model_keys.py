"""The backbone: keys of `model`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, model_validator

from oltr_ext.config.augment_keys import Strict
from oltr_ext.config.open_set import Count
from oltr_ext.config.paths import AnyPath, expanded
from oltr_ext.models.tuning import Tune


class ModelConfig(Strict):
    backbone: str = "small_cnn"  # embeddings have none but `embedding`
    # the library's name for them, such as DEFAULT, or the path of a file: a state dict
    weights: Annotated[str, AfterValidator(expanded)] | None = None
    # What of the backbone is trained: all; nothing, on features made once, of images that are not
    # augmented; biases and norms; or adapters of low rank, by peft. But for all, BatchNorm's
    # statistics stand still, and checkpoints hold what was trained alone.
    tune: Tune = "all"
    lora_rank: Count = 8
    templates: AnyPath | None = None  # texts of classifier_init: text, one a line, {} for the name
    channels_last: bool = True  # layout of images and convolutions; a sixth faster on a CPU
    # forget what is inside the backbone's blocks, and compute it again for the gradient: a third
    # more time, and memory for one block
    gradient_checkpointing: bool = False
    compile: bool = False  # the backbone, by torch.compile, in training

    @model_validator(mode="after")
    def _go_together(self) -> ModelConfig:
        if self.compile and self.gradient_checkpointing:
            raise ValueError("compile and gradient_checkpointing do not go together: choose one")
        if self.tune != "all" and self.weights is None:
            raise ValueError(f"tune: {self.tune} needs weights to start from, and weights is null")
        return self
