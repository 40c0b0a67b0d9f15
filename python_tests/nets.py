"""The smallest nets of each family that timm and open_clip have, and files of their weights."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import timm
import torch
from timm.models import swin_transformer
from torch import Tensor, nn

FAMILIES = {
    "ResNet": "test_resnet",
    "ConvNeXt": "test_convnext",
    "ViT": "test_vit",
    "Swin": "tiny_swin",
    "MobileNetV3": "mobilenetv3_small_050",
    "EfficientNet": "test_efficientnet",
}
"""timm's names; its Swins have 28 million weights, so there is one of our own."""


def tiny_swin(pretrained: bool = False, **options: object) -> nn.Module:
    sizes = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    return timm.models.build_model_with_cfg(
        swin_transformer.SwinTransformer, "tiny_swin", pretrained, **sizes, **options
    )


tiny_swin.__module__ = swin_transformer.__name__
swin_transformer.default_cfgs["tiny_swin"] = swin_transformer.default_cfgs[
    "swin_tiny_patch4_window7_224"
]
timm.models.register_model(tiny_swin)


def drawn(name: str, **options: object) -> dict[str, Tensor]:
    """A state dict of a net of timm with its classifier, every tensor of it drawn at random."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return shaken(timm.create_model(name, **options).state_dict())


def shaken(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with no tensor left at what it starts at, such as zero."""
    for key, value in state.items():
        if value.is_floating_point():
            value.add_(0.02 * torch.randn(value.shape).abs())
        elif key.endswith("num_batches_tracked"):
            value.fill_(7)
    return state


def saved(state: dict[str, Tensor], path: Path) -> str:
    torch.save(state, path)
    return str(path)


def tiny_clip(folder: Path, *, texts: bool = True) -> tuple[Path, nn.Module]:
    """A folder as open_clip reads it: settings and random weights; and the whole net."""
    made = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "patch_size": 8,
            "head_width": 16,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    pixels = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}
    folder.mkdir(exist_ok=True)
    whole = json.dumps({"model_cfg": made, "preprocess_cfg": pixels})
    (folder / "open_clip_config.json").write_text(whole)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = open_clip.CLIP(**made)
        state = {k: v for k, v in shaken(net.state_dict()).items() if texts or "visual." in k}
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder, net.eval()
