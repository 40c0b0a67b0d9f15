"""Any torchvision classifier as a backbone."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor

from oltr_ext.models import weights as w
from oltr_ext.models.pixels import IMAGENET_MEAN, IMAGENET_STD, Renormalise, check_channels

__all__ = ["TorchvisionBackbone"]

SIZE = 224  # of images, for the nets that take any


class TorchvisionBackbone(nn.Module):
    """Any torchvision classification model up to its last spatial feature map.

    Models without one (vision transformers) give their pooled feature as a 1x1 map, and are built
    for the size of the images, to which published position embeddings are interpolated.
    Images get the mean and std that the published weights were trained with; grey ones are
    repeated to three channels first.
    """

    base: w.Base | None = None

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        weights: str | None = None,
        load: bool = True,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        check_channels(f"torchvision:{name}", in_channels)
        size = image_size or SIZE
        net = _torchvision_model(name, weights, size)
        if weights is not None and load:
            state, what = w.read_file(weights) if w.is_file(weights) else w.fetch(name, weights)
            self.base = w.fill(net, state, what, convert=w.positions).below("body.")
        self.normalise = Renormalise(in_channels, *_published_mean_and_std(name))
        # only where a map is larger than a pixel can it be told from what was pooled
        node, shape = _last_map(net, size if _built_for_a_size(name) else SIZE)
        if len(shape) == 4:
            self.body: nn.Module = create_feature_extractor(
                net, {node: "map"}, suppress_diff_warning=True
            )
        else:
            self.body = _without_classifier(net)
        self.rectify = name.startswith("densenet")  # its last ReLU is no module
        try:
            with torch.no_grad():
                maps = self.eval()(torch.zeros(1, in_channels, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise _of_size(name, size, error) from None
        self.feature_dim = int(maps.shape[1])
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        out = self.body(self.normalise(images))
        out = out["map"] if isinstance(out, dict) else out
        out = out.relu() if self.rectify else out
        return out if out.dim() == 4 else out[:, :, None, None]


def _torchvision_model(name: str, weights: str | None, size: int) -> nn.Module:
    """The net as for these weights, without them."""
    known = list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean torchvision:{near[0]}?" if near else ""
        raise ValueError(f"build_backbone: torchvision has no model named {name!r}{hint}")
    if weights is not None and not w.is_file(weights):
        w.published(name, weights)
    options: dict[str, Any] = {}
    # torchvision makes these differently for published weights; so must we
    if name.startswith(("vgg", "googlenet", "inception")):
        options["init_weights"] = weights is None
    if name.startswith(("googlenet", "inception")):
        options["transform_input"] = weights is not None
    if name.startswith("vit_"):
        options["image_size"] = size
    if name.startswith("maxvit"):
        options["input_size"] = (size, size)
    try:
        return get_model(name, weights=None, **options)
    except (KeyError, ValueError, AssertionError) as error:
        raise (_of_size(name, size, error) if _built_for_a_size(name) else error) from None


def _built_for_a_size(name: str) -> bool:
    return name.startswith(("vit_", "maxvit"))


def _of_size(name: str, size: int, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())
    if name.startswith("vit_"):
        reason = f"its patches are of {name.rpartition('_')[2]} x {name.rpartition('_')[2]}"
    return ValueError(
        f"build_backbone: torchvision:{name} cannot take images of {size} x {size}: {reason[:200]}"
    )


def _published_mean_and_std(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Those of the best published weights: known without them, when a checkpoint follows."""
    made = get_model_weights(name).DEFAULT.transforms()
    return getattr(made, "mean", IMAGENET_MEAN), getattr(made, "std", IMAGENET_STD)


def _last_map(net: nn.Module, size: int) -> tuple[str, tuple[int, ...]]:
    """Name and output shape of the last module before the head that is not pooled to a vector."""
    last: list[tuple[str, tuple[int, ...]]] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, out: object) -> None:
            if isinstance(out, Tensor) and out.dim() > 2 and out[0, 0].numel() > 1:
                last.append((name, tuple(out.shape)))

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in net.named_modules()
        if name and not name.startswith(w.CUT_OFF)
    ]
    net.eval()
    with torch.no_grad():
        net(torch.zeros(1, 3, size, size))
    for handle in handles:
        handle.remove()
    return last[-1]


def _without_classifier(net: nn.Module) -> nn.Module:
    name = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, leaf = name.rpartition(".")
    setattr(net.get_submodule(parent), leaf, nn.Identity())
    return net
