"""Any net of timm as a backbone."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oltr_ext.models import weights as w
from oltr_ext.models.pixels import Renormalise, Wants, check_channels, probe

__all__ = ["TimmBackbone", "wants"]


class TimmBackbone(nn.Module):
    """Any net of timm, up to what its classifier sees.

    That is the mean of its last feature map, which is given; or, where the net does more than take
    that mean (a class token, a norm or a layer after the pooling), the net's own feature as a
    1 x 1 map. Which one, and how wide it is, a pass over a random image tells. Images get
    the mean and std of timm's own settings; grey ones are repeated to three channels.

    Args:
        name: of timm, with or without the tag of its weights.
        weights: a tag, ``DEFAULT``, the path of a file, or None.
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
        check_channels(f"timm:{name}", in_channels)
        timm, full = w.extra("timm", "timm"), _tagged(name, weights)
        cfg = timm.get_pretrained_cfg(full)
        size = image_size or cfg.input_size[-1]
        options = {"img_size": size} if cfg.fixed_input_size else {}
        try:
            self.body = timm.create_model(full, num_classes=0, **options)
            if weights is not None and load:
                state, what = w.read_file(weights) if w.is_file(weights) else _fetch(full)
                convert = getattr(
                    sys.modules[type(self.body).__module__], "checkpoint_filter_fn", None
                )
                base = w.fill(self.body, state, what, convert=convert, cut=())
                self.base = base.below("body.")
            settings = timm.data.resolve_model_data_config(self.body)
            self.normalise = Renormalise(in_channels, settings["mean"], settings["std"])
            self.axis = self._axis_of_channels(probe(in_channels, size))
        except (RuntimeError, TypeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"build_backbone: timm:{name} cannot take images of {size} x {size}: {reason}"
            ) from None

    @torch.no_grad()
    def _axis_of_channels(self, images: Tensor) -> int | None:
        """Of the last map, where its mean is the net's feature; whose width is `feature_dim`."""
        self.eval()
        x = self.normalise(images)
        maps, pooled = self.body.forward_features(x), self.body(x)
        self.train()
        self.feature_dim = int(pooled.shape[1])
        if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.is_meta:
            return None
        for axis, sides in ((1, (2, 3)), (3, (1, 2))):
            means = maps.mean(sides)
            if means.shape == pooled.shape and torch.allclose(means, pooled, rtol=1e-3, atol=1e-5):
                return axis
        return None

    def forward(self, images: Tensor) -> Tensor:
        x = self.normalise(images)
        if self.axis is None:
            return self.body(x)[:, :, None, None]
        maps: Tensor = self.body.forward_features(x)
        return maps if self.axis == 1 else maps.permute(0, 3, 1, 2)


def wants(name: str, weights: str | None) -> Wants:
    """The size and interpolation of images by timm's settings for a net."""
    timm = w.extra("timm", "timm")
    cfg = timm.get_pretrained_cfg(_tagged(name, weights))
    return Wants(cfg.input_size[-1], "bilinear" if cfg.interpolation == "bilinear" else "bicubic")


def _tagged(name: str, weights: str | None) -> str:
    """timm's full name of a net with its weights."""
    timm = w.extra("timm", "timm")
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, timm.list_models(), n=1)
        hint = f"; did you mean timm:{near[0]}?" if near else ""
        raise ValueError(f"build_backbone: timm has no model named {plain!r}{hint}")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        raise ValueError(_no_weights(plain, tag, tags))
    if weights is None or w.is_file(weights):
        return name
    if weights != "DEFAULT" and (weights not in tags or tag not in ("", weights)):
        raise ValueError(_no_weights(name, weights, tags if not tag else [tag]))
    if not tags:
        raise ValueError(_no_weights(name, weights, tags))
    return name if weights == "DEFAULT" else f"{plain}.{weights}"


def _no_weights(name: str, weights: str, tags: Sequence[str]) -> str:
    there = ", ".join(["DEFAULT", *tags]) if tags else "none, as timm has published none"
    return (
        f"build_backbone: timm:{name} has no weights={weights!r}: expected {there}, or the path of "
        "a file"
    )


def _fetch(full: str) -> tuple[dict[str, Tensor], str]:
    """Published weights, for the size that they were trained at; what to call them."""
    what = f"model.weights: timm:{full}"
    try:
        with torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
            net: Any = w.extra("timm", "timm").create_model(full, pretrained=True)
    except Exception as error:  # of the hub, urllib, safetensors and torch
        raise ValueError(w.unfetched(what, error)) from None
    return net.state_dict(), what
