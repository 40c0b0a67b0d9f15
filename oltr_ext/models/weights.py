"""Weights to start from: published ones, fetched once, or a file of your own."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

__all__ = [
    "CUT_OFF",
    "Base",
    "digest",
    "extra",
    "fetch",
    "fill",
    "is_file",
    "positions",
    "published",
    "read_file",
    "unfetched",
]

State = Mapping[str, Tensor]
Convert = Callable[[dict[str, Tensor], nn.Module], Mapping[str, Tensor]]
CUT_OFF = ("classifier", "fc", "head", "heads", "aux", "AuxLogits", "dropout", "avgpool")
"""Modules behind the last feature map of torchvision's classifiers: what a backbone leaves out."""
NESTS = ("state_dict", "model", "model_state_dict", "teacher")
"""Under which training programs save the weights, beside what else they save."""
WRAPPERS = (
    "module.",
    "model.",
    "backbone.",
    "encoder.",
    "_orig_mod.",
    "visual.",
    "trunk.",
)
"""What they leave before a weight's name."""
ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar", ".npz")
"""Of files of weights; those of NumPy are refused by name."""
TENTH = 0.1
"""The most of a net's numbers, and of a file's, that may lack the other."""


@dataclass(frozen=True)
class Base:
    """Weights that a net started from.

    Attributes:
        sha256: of their names, dtypes, shapes and numbers, as `digest`.
        keys: of the net's state dict, those that they filled.
    """

    sha256: str
    keys: frozenset[str]

    def below(self, prefix: str) -> Base:
        """The same of a module that has the net under a name."""
        return Base(self.sha256, frozenset(prefix + key for key in self.keys))


def extra(module: str, name: str) -> Any:
    """A package that an extra of this one brings, imported.

    Raises:
        RuntimeError: it is not installed; how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise RuntimeError(f"{module} is not installed: pip install oltr_ext[{name}]") from None


def is_file(weights: str | None) -> bool:
    """Whether `model.weights` is a path, and not the name of published weights."""
    return weights is not None and (
        os.sep in weights or weights.endswith(ENDINGS) or os.path.isfile(weights)
    )


def published(name: str, weights: str) -> WeightsEnum:
    """Raises ValueError where torchvision has no such weights of this model."""
    there = get_model_weights(name)
    try:
        return there[weights.removeprefix(f"{there.__name__}.")]
    except KeyError:
        names = ", ".join(["DEFAULT", *(each.name for each in there)])
        raise ValueError(
            f"build_backbone: torchvision:{name} has no weights={weights!r}: expected {names}, or "
            "the path of a file"
        ) from None


def fetch(name: str, weights: str) -> tuple[State, str]:
    """Published weights from the cache of torch.hub, else from the network; what to call them."""
    found = published(name, weights)
    url = str(found.url)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    there, what = cached.exists(), f"model.weights: {weights} of torchvision:{name}"
    try:
        return found.get_state_dict(progress=True, check_hash=True), f"{what}, {cached}"
    except Exception as error:  # of urllib, zip files, pickle and torch
        reason = " ".join(str(error).split()) or type(error).__name__
        if there:
            raise ValueError(
                f"{what}: {cached} is damaged ({reason[:200]}); remove it, and it is fetched again "
                f"from {url}, or set model.weights to a file"
            ) from None
        raise ValueError(
            f"{what} cannot be fetched from {url} ({reason[:200]}); fetch it elsewhere, and set "
            f"model.weights to the file or copy it to {cached}"
        ) from None


def read_file(path: str) -> tuple[State, str]:
    """A state dict, as it is or under one of `NESTS`; what to call it."""
    what = f"model.weights: {path}"
    if not Path(path).is_file():
        raise ValueError(f"{what}: no such file")
    if path.endswith(".npz"):
        raise ValueError(
            f"{what} is of NumPy: expected a state dict, as torch or safetensors saves it"
        )
    try:
        if path.endswith(".safetensors"):
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of zip files, pickle, safetensors and torch
        raise ValueError(
            f"{what} is damaged, or holds more than tensors ({_reason(error)[:200]})"
        ) from None
    while isinstance(state, dict):
        inner = next((state[key] for key in NESTS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, dict) or not state or not all(map(torch.is_tensor, state.values())):
        keys = list(map(str, state)) if isinstance(state, dict) else []
        there = f"; there are {_some(keys)}" if keys else ""
        raise ValueError(f"{what} holds no tensors by name: expected a state dict{there}")
    return {str(key): value for key, value in state.items()}, what


def _reason(error: Exception) -> str:
    """What torch.load says, without its colours and its advice to trust the file."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    text = text.rpartition("WeightsUnpickler error: ")[2]
    for advice in (" Please use ", " Check the documentation"):
        text = text.partition(advice)[0]
    return text or type(error).__name__


def unfetched(what: str, error: Exception) -> str:
    """What to say of published weights that a library could not fetch."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{what} cannot be fetched ({reason[:200]}); fetch them elsewhere, and set model.weights "
        "to the file"
    )


def digest(state: State) -> str:
    """SHA-256 of tensors and their names, whatever the order and the file."""
    made = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        made.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        made.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def fill(
    net: nn.Module,
    state: State,
    what: str,
    *,
    convert: Convert | None = None,
    cut: tuple[str, ...] = CUT_OFF,
) -> Base:
    """Load the weights of a net, whose classifier may be there, be another, or lack.

    Names are taken as they are and without the prefixes of `WRAPPERS`, whichever fits more.

    Args:
        convert: other names and sizes to this net's, for each of both.
        cut: modules of the net that are not needed.

    Warns:
        UserWarning: tensors of the net that the weights lack, and of the weights that it lacks.

    Raises:
        ValueError: the weights are of another net; `what` they are, and the first differences. They
            are where a shape differs, or more than `TENTH` of the numbers of either lack the other.
    """
    own = net.state_dict()
    needed = {k: v for k, v in own.items() if not k.startswith(cut)} if cut else own
    plain = _unwrapped(state, needed)
    found = max((_converted(each, net, convert) for each in (plain, state)), key=_fits(needed))
    given = {k: v for k, v in found.items() if k in needed}
    strange = [k for k in found if k not in own and not k.startswith(CUT_OFF)]
    uncounted = ("num_batches_tracked", "relative_position_index", "attn_mask")
    lacking = [k for k in needed if k not in given and not k.endswith(uncounted)]
    shapes = [k for k in given if given[k].shape != needed[k].shape]
    differences = [
        f"{len(keys)} {words}, the first {keys[0]}"
        for keys, words in (
            (lacking, "tensors are missing"),
            (strange, "are not in this net"),
            (shapes, "have another shape"),
        )
        if keys
    ]
    parts = ((lacking, needed), (strange, {**given, **{k: found[k] for k in strange}}))
    if shapes or not given or any(_numbers(k, of) > TENTH * _numbers(of, of) for k, of in parts):
        raise ValueError(f"{what} holds the weights of another net: {'; '.join(differences)}")
    if differences:
        lists = [f"missing, so drawn at random: {_some(lacking)}"] if lacking else []
        lists += [f"not in this net, so left out: {_some(strange)}"] if strange else []
        warnings.warn(f"{what}: {'; '.join(lists)}", stacklevel=2)
    net.load_state_dict({**own, **given})
    return Base(digest(state), frozenset(given))


def _converted(state: State, net: nn.Module, convert: Convert | None) -> State:
    if convert is None:
        return state
    try:
        return convert(dict(state), net)
    except (LookupError, ValueError, RuntimeError, AttributeError, AssertionError):
        return state  # names that it does not know; what differs is told


def _fits(needed: State) -> Callable[[State], int]:
    return lambda state: sum(k in needed for k in state)


def _unwrapped(state: State, needed: State) -> State:
    """What lies under that chain of `WRAPPERS` below which most of the needed names are."""
    chains = {"": 0}
    for key in state:
        chain, rest = "", key
        while True:
            chains[chain] = chains.get(chain, 0) + (rest in needed)
            prefix = next((p for p in WRAPPERS if rest.startswith(p)), None)
            if prefix is None:
                break
            chain, rest = chain + prefix, rest.removeprefix(prefix)
    best = max(chains, key=lambda chain: (chains[chain], -len(chain)))
    return {k.removeprefix(best): v for k, v in state.items() if k.startswith(best)}


def _numbers(keys: Any, tensors: State) -> int:
    return sum(tensors[key].numel() for key in keys)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def positions(state: dict[str, Tensor], net: nn.Module) -> State:
    """torchvision's published names are today's, and its position embeddings of the net's size."""
    state = {_today(key): value for key, value in state.items()}
    place = "encoder.pos_embedding"
    if isinstance(net, VisionTransformer) and place in state:
        return interpolate_embeddings(net.image_size, net.patch_size, state)
    return state


def _today(key: str) -> str:
    """The published DenseNets have names from before torch forbade dots in them."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)
