"""CLIP by open_clip: the image encoder as a backbone, the text encoder for where classes start."""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oltr_ext.models import weights as w
from oltr_ext.models.pixels import Renormalise, Wants, check_channels, probe

__all__ = ["OpenClipBackbone", "text_directions", "wants"]

CONFIG = "open_clip_config.json"
"""What a folder holds beside its weights, as open_clip and the hub write it."""
FILES = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")
TEMPLATES = ("a photo of a {}.",)


class OpenClipBackbone(nn.Module):
    """The image encoder of a CLIP. Its feature is the embedding that is compared with texts, by
    direction alone, as CLIP does: of length sqrt(D), given as a 1 x 1 map.

    Args:
        name: of open_clip, or a folder with `CONFIG`.
        weights: a tag of open_clip, the path of a file, ``DEFAULT`` for the file of the folder.
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
        check_channels(f"open_clip:{name}", in_channels)
        settings = _settings(name, weights)
        size = image_size or settings["size"]
        try:
            self.body = _net(name, size).visual
            if weights is not None and load:
                state, what = _read(name, weights)
                self.base = w.fill(self.body, state, what, convert=_resized, cut=()).below("body.")
            self.normalise = Renormalise(in_channels, settings["mean"], settings["std"])
            with torch.no_grad():
                self.feature_dim = int(self.eval()(probe(in_channels, size)).shape[1])
            self.train()
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"build_backbone: open_clip:{name} cannot take images of {size} x {size}: {reason}"
            ) from None

    def forward(self, images: Tensor) -> Tensor:
        out = self.body(self.normalise(images))
        out = out[0] if isinstance(out, tuple) else out
        return (F.normalize(out, dim=1) * out.shape[1] ** 0.5)[:, :, None, None]


def wants(name: str, weights: str | None) -> Wants:
    """The size and interpolation of images by open_clip's settings for a net."""
    settings = _settings(name, weights)
    smooth = "bilinear" if settings["interpolation"] == "bilinear" else "bicubic"
    return Wants(settings["size"], smooth)  # type: ignore[arg-type]


@torch.no_grad()
def text_directions(
    name: str, weights: str, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """(C, D) of length 1: where the text encoder of a CLIP puts classes.

    Args:
        name, weights: of `OpenClipBackbone`.
        templates: texts with ``{}`` for a class's name, of which the mean is taken.

    Raises:
        ValueError: weights without a text encoder, or a tokenizer that cannot be had.
    """
    open_clip = w.extra("open_clip", "open-clip")
    state, what = _read(name, weights)
    net = _net(name, _settings(name, weights)["size"])
    net.visual = nn.Identity()
    texts = {k: v for k, v in state.items() if "visual." not in k}
    if not any("token_embedding" in k or "text" in k for k in texts):
        raise ValueError(f"classifier_init: text needs a text encoder, and {what} holds none")
    w.fill(net, texts, what, cut=())
    try:
        tokenizer = open_clip.get_tokenizer(_full_name(name))
    except Exception as error:  # of the hub and of tokenizers
        raise ValueError(
            f"classifier_init: text: the tokenizer of open_clip:{name} cannot be had: {error}"
        ) from None
    rows = []
    for label in class_names:
        spoken = re.sub(r" \(\d+\)$", "", label).replace("_", " ")  # "crane (2)" is a crane
        asked = tokenizer([each.format(spoken) for each in templates])
        found = F.normalize(net.eval().encode_text(asked).float(), dim=1)
        rows.append(F.normalize(found.mean(dim=0), dim=0))
    return torch.stack(rows)


def _full_name(name: str) -> str:
    """As open_clip's functions take it.

    Raises:
        ValueError: no such model, or folder of one.
    """
    open_clip = w.extra("open_clip", "open-clip")
    if Path(name).is_dir():
        if not (Path(name) / CONFIG).is_file():
            raise ValueError(f"build_backbone: open_clip:{name} has no {CONFIG}")
        return f"local-dir:{name}"
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=1)
        hint = f"did you mean open_clip:{near[0]}?" if near else "expected one of its names"
        raise ValueError(
            f"build_backbone: open_clip has no model named {name!r}; {hint} A folder with {CONFIG} "
            "will do too"
        )
    return name


def _net(name: str, size: int) -> Any:
    """The whole CLIP, without weights."""
    open_clip, full = w.extra("open_clip", "open-clip"), _full_name(name)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of a net without weights
    try:
        device = torch.get_default_device()
        return open_clip.create_model(
            full, load_weights=False, force_image_size=size, device=device
        )
    finally:
        logging.disable(before)


def _settings(name: str, weights: str | None) -> dict[str, Any]:
    """Size, mean, std and interpolation of images, and the check that these weights are there."""
    open_clip = w.extra("open_clip", "open-clip")
    full = _full_name(name)
    if full != name:
        held = json.loads((Path(name) / CONFIG).read_text(encoding="utf-8"))
        model, made = held["model_cfg"], held.get("preprocess_cfg", {})
        if weights == "DEFAULT":
            _file_of(name)
        elif weights is not None and not w.is_file(weights):
            raise ValueError(_no_weights(name, weights, ["DEFAULT"]))
    else:
        model, tags = (
            open_clip.get_model_config(name),
            open_clip.list_pretrained_tags_by_model(name),
        )
        if weights is not None and not w.is_file(weights) and weights not in tags:
            raise ValueError(_no_weights(name, weights, tags))
        tag = weights if weights in tags else next(iter(tags), None)
        made = {} if tag is None else open_clip.get_pretrained_cfg(name, tag)
        quick = bool(made.get("quick_gelu")), bool(model.get("quick_gelu"))
        if weights in tags and quick == (True, False):
            raise ValueError(
                f"build_backbone: weights={weights!r} were trained with QuickGELU, which "
                f"open_clip:{name} has not: open_clip:{name}-quickgelu has it"
            )
    size = model["vision_cfg"].get("image_size", 224)
    return {
        "size": size if isinstance(size, int) else size[0],
        "mean": made.get("mean") or open_clip.OPENAI_DATASET_MEAN,
        "std": made.get("std") or open_clip.OPENAI_DATASET_STD,
        "interpolation": made.get("interpolation") or "bicubic",
    }


def _no_weights(name: str, weights: str, tags: Sequence[str]) -> str:
    return (
        f"build_backbone: open_clip:{name} has no weights={weights!r}: expected "
        f"{', '.join(tags) or 'none of its own'}, or the path of a file"
    )


def _file_of(folder: str) -> str:
    found = [Path(folder) / file for file in FILES if (Path(folder) / file).is_file()]
    if not found:
        raise ValueError(f"model.weights: {folder} holds none of {', '.join(FILES)}")
    return str(found[0])


def _read(name: str, weights: str) -> tuple[w.State, str]:
    """The state of a whole CLIP, at the size that it was trained at; what to call it."""
    if w.is_file(weights):
        return w.read_file(weights)
    if weights == "DEFAULT":
        return w.read_file(_file_of(name))
    what = f"model.weights: {weights} of open_clip:{name}"
    try:
        with torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
            net = w.extra("open_clip", "open-clip").create_model(name, pretrained=weights)
    except Exception as error:  # of the hub, urllib, safetensors and torch
        raise ValueError(w.unfetched(what, error)) from None
    return net.state_dict(), what


def _resized(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Position embeddings of the size of the net's images."""
    from open_clip.model import resize_pos_embed

    whole = {f"visual.{key}": value for key, value in state.items()}
    resize_pos_embed(whole, SimpleNamespace(visual=net))
    return {key.removeprefix("visual."): value for key, value in whole.items()}
