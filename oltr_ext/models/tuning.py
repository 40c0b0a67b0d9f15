"""Which of a backbone's weights are trained: all, none, biases and norms, or low-rank adapters."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from oltr_ext.models import weights as w

__all__ = ["Tune", "batchnorms", "merge_adapters", "tune"]

Tune = Literal["all", "nothing", "bias_and_norms", "lora"]


def tune(backbone: nn.Module, how: Tune, images: Tensor, *, rank: int = 8) -> w.Base | None:
    """Leave to train, of a backbone, what `how` says.

    Adapters (W + B A, B starts at zero) are peft's, one for each linear layer that a pass over
    `images` calls, those of attention among them; or, in a net whose layers are all convolutions,
    for each of these that is not in groups.

    Args:
        images: (B, C, H, W), as the backbone takes them.
        rank: of adapters.

    Returns:
        The weights that it started from, with the keys of its state dict that stay as they are
        there; None where all are trained, or it started from none.

    Raises:
        RuntimeError: peft is not installed. ValueError: no layer for an adapter.
    """
    if how == "all":
        return None
    backbone.requires_grad_(False)
    if how == "bias_and_norms":
        for module in backbone.modules():
            norm = "norm" in type(module).__name__.lower()
            for name, parameter in module.named_parameters(recurse=False):
                parameter.requires_grad_(norm or name.endswith("bias"))
    elif how == "lora":
        _add_adapters(backbone, images, rank)
    base: w.Base | None = getattr(backbone, "base", None)
    if base is None:
        return None
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    kept = [k for k in backbone.state_dict() if _as_published(k) in base.keys and k not in trained]
    return w.Base(base.sha256, frozenset(kept))


def batchnorms(backbone: nn.Module) -> list[str]:
    """Names of the modules whose statistics stand still unless all is trained."""
    return [name for name, m in backbone.named_modules() if isinstance(m, _BatchNorm)]


class PlainAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence to itself, by two linear layers that can be adapted.

    peft's own adapter for that module adds to its weights and takes away again at each pass, and so
    moves frozen weights by a rounding.
    """

    def __init__(self, other: nn.MultiheadAttention) -> None:
        super().__init__()
        width, bias = other.embed_dim, other.in_proj_bias
        with torch.device("meta"):  # its weights are the other's
            self.in_proj = nn.Linear(width, 3 * width, bias=bias is not None)
            self.out_proj = nn.Linear(width, width, bias=bias is not None)
        self.in_proj.weight = other.in_proj_weight
        self.out_proj.weight = other.out_proj.weight
        if bias is not None:
            self.in_proj.bias, self.out_proj.bias = bias, other.out_proj.bias
        self.heads, self.dropout = other.num_heads, other.dropout
        self.batch_first = other.batch_first

    def forward(
        self, x: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: Any
    ) -> tuple[Tensor, None]:
        x = x if self.batch_first else x.transpose(0, 1)
        parts = self.in_proj(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        found = nn.functional.scaled_dot_product_attention(
            parts[0], parts[1], parts[2], attn_mask=attn_mask, dropout_p=drop
        )
        out = self.out_proj(found.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


def _add_adapters(backbone: nn.Module, images: Tensor, rank: int) -> None:
    peft = w.extra("peft", "lora")
    for name, (module, inputs) in _called(backbone, images).items():
        itself = len(inputs) == 3 and inputs[0] is inputs[1] is inputs[2]
        if type(module) is nn.MultiheadAttention and itself and module.in_proj_weight is not None:
            backbone.set_submodule(name, PlainAttention(module))
    called = _called(backbone, images)
    # a layer whose weight something else reads, as BEiT's, is never called: it would learn nothing
    linear = [name for name, (module, _) in called.items() if type(module) is nn.Linear]
    layers = linear or [
        name for name, (m, _) in called.items() if type(m) is nn.Conv2d and m.groups == 1
    ]
    if not layers:
        raise ValueError("model.tune: lora: this backbone has no layer that an adapter could join")
    settings = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
    peft.inject_adapter_in_model(settings, backbone)


@torch.no_grad()
def _called(backbone: nn.Module, images: Tensor) -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    """Modules that a pass calls, in order, and what with."""
    found: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, inputs, name=name: found.update({name: (module, inputs)})
        )
        for name, module in backbone.named_modules()
    ]
    training = backbone.training
    backbone.eval()(images)
    backbone.train(training)
    for hook in hooks:
        hook.remove()
    return found


def _as_published(key: str) -> str:
    """A name of the state dict before adapters were added."""
    for new, old in (("base_layer.", ""), ("in_proj.weight", "in_proj_weight")):
        key = key.replace(new, old)
    return key.replace("in_proj.bias", "in_proj_bias")


def merge_adapters(module: nn.Module) -> None:
    """Put adapters into the weights that they adapt, for where they need not be told apart."""
    for name, layer in list(module.named_modules()):
        if hasattr(layer, "get_base_layer") and hasattr(layer, "merge"):
            layer.merge()
            module.set_submodule(name, layer.get_base_layer())
