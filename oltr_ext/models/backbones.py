"""Backbones: each maps images (B, in_channels, H, W) to a map (B, feature_dim, h, w)."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, list_models, resnet
from torchvision.models.feature_extraction import create_feature_extractor

__all__ = ["ResNet10", "SmallCNN", "TorchvisionBackbone", "build_backbone"]


class SmallCNN(nn.Module):
    """3x3 convolutions (BN, ReLU) for small images: 32x32 -> 4x4, 1.16M weights.

    One convolution at full size, where each costs most, then three stages of two, each after a
    halving of the side.

    Args:
        in_channels: of the images.
        widths: channels of the four stages; the last is ``feature_dim``.
    """

    def __init__(
        self, in_channels: int = 1, widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        fan = in_channels
        for stage, width in enumerate(widths):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(2 if stage else 1):
                conv = nn.Conv2d(fan, width, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                fan = width
        self.layers = nn.Sequential(*layers)
        self.feature_dim = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class ResNet10(nn.Module):
    """torchvision's ResNet with one BasicBlock a stage, the paper's ImageNet-LT backbone."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        net = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])
        if in_channels != 3:
            net.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.feature_dim = int(net.fc.in_features)
        # names stay those of torchvision, so published ResNet weights load
        for name, child in net.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, child)

    def forward(self, images: Tensor) -> Tensor:
        for child in self.children():
            images = child(images)
        return images


class TorchvisionBackbone(nn.Module):
    """Any torchvision classification model up to its last spatial feature map.

    Models without one (vision transformers) give their pooled feature as a 1x1 map.
    Grey images are repeated to three channels, so published weights apply.
    """

    def __init__(self, name: str, *, in_channels: int = 3, weights: str | None = None) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            raise ValueError(
                f"build_backbone: torchvision:{name} takes 1 or 3 channels, got {in_channels}"
            )
        net = _torchvision_model(name, weights)
        node, shape = _last_map(net)
        if len(shape) == 4:
            self.body: nn.Module = create_feature_extractor(
                net, {node: "map"}, suppress_diff_warning=True
            )
        else:
            self.body = _without_classifier(net)
        with torch.no_grad():
            self.feature_dim = int(self.eval()(torch.zeros(1, in_channels, 224, 224)).shape[1])
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        out = self.body(images.expand(-1, 3, -1, -1))
        out = out["map"] if isinstance(out, dict) else out
        return out if out.dim() == 4 else out[:, :, None, None]


def _torchvision_model(name: str, weights: str | None) -> nn.Module:
    known = list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean torchvision:{near[0]}?" if near else ""
        raise ValueError(f"build_backbone: torchvision has no model named {name!r}{hint}")
    options: dict[str, Any] = {"weights": weights}
    if weights is None and name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # silences their warning about a slow default
    try:
        return get_model(name, **options)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"build_backbone: torchvision:{name}, weights={weights!r}: {error}"
        ) from error


def _last_map(net: nn.Module) -> tuple[str, tuple[int, ...]]:
    """Name and output shape of the last module before the head that is not pooled to a vector."""
    head = ("classifier", "fc", "head", "heads", "aux", "AuxLogits", "dropout", "avgpool")
    last: list[tuple[str, tuple[int, ...]]] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, out: object) -> None:
            if isinstance(out, Tensor) and out.dim() > 2 and out[0, 0].numel() > 1:
                last.append((name, tuple(out.shape)))

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in net.named_modules()
        if name and not name.startswith(head)
    ]
    net.eval()
    with torch.no_grad():
        net(torch.zeros(1, 3, 224, 224))
    for handle in handles:
        handle.remove()
    return last[-1]


def _without_classifier(net: nn.Module) -> nn.Module:
    name = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, nn.Identity())
    return net


def build_backbone(name: str, *, in_channels: int = 3, weights: str | None = None) -> nn.Module:
    """Backbone by name, with attribute ``feature_dim``; forward gives (B, feature_dim, h, w).

    Args:
        name: ``small_cnn``, ``resnet10``, or ``torchvision:<name>`` (any classification model).
        in_channels: channels of the images.
        weights: torchvision weights name such as ``DEFAULT``; only with ``torchvision:``.

    Raises:
        ValueError: unknown name, weights given to a backbone that has none, or bad channels.
    """
    if in_channels < 1:
        raise ValueError(f"build_backbone: in_channels must be at least 1, got {in_channels}")
    if name.startswith("torchvision:"):
        return TorchvisionBackbone(
            name.removeprefix("torchvision:"), in_channels=in_channels, weights=weights
        )
    own = {"small_cnn": SmallCNN, "resnet10": ResNet10}
    if name not in own:
        raise ValueError(
            f"build_backbone: expected small_cnn, resnet10 or torchvision:<name>, got {name!r}"
        )
    if weights is not None:
        raise ValueError(f"build_backbone: {name} has no published weights, got {weights!r}")
    return own[name](in_channels)
