"""Typed configuration of a run: YAML in, checked values out, errors in one readable line."""

from __future__ import annotations

import copy
import difflib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from oltr_ext.config.methods import DEFAULT, apply_method, says_how, spread
from oltr_ext.config.pictures import settled
from oltr_ext.config.schema import Config, ListData

__all__ = ["ConfigError", "as_yaml", "config_names", "load_config", "make_config", "run_config"]

RATES = "for a small network from scratch, 0.01 for one with published weights"
REQUIRED = {  # what to say of a key that is missing
    "data.val": ": a list, or 0.1 to hold a tenth of train out, or one_per_class",
    "stage1": f", such as {{lr: 0.1, schedule: {{kind: cosine}}}} {RATES}",
    "stage1.lr": f", such as 0.1 {RATES}",
}
UNIONS = ("data", "loss", "stage2")  # groups of keys that hold what their `kind` says

OF_ONE = ("stage1.epochs", "stage2.epochs")
ALONE = {"augment": "preset"}  # groups in whose place the value of one key may stand


class ConfigError(ValueError):
    """A configuration that cannot be read or does not hold; the message is one line."""


def make_config(
    values: Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    source: str = "config",
    method: str | None = None,
) -> Config:
    """Check a mapping as YAML gives it, with some keys replaced.

    Args:
        overrides: ``key.path=value`` strings; values are YAML. The last word. ``epochs=N`` is
            for all stages, as the method divides them, or in the proportion that they have.
        method: one of `METHODS`, to train by it in place of what `values` say of stages; None:
            their own ``method``, or as they are; ``auto``: the same, but `DEFAULT` where nothing
            there or in `overrides` says how to train.

    Raises:
        ConfigError: one line with `source`, the key's path, what was expected and what came.
    """
    own, (values, overrides, epochs) = values.get("method"), _whole(values, overrides, source)
    if method == "auto" and own is None and not says_how(values, overrides):
        method = DEFAULT
    elif method in (None, "auto"):
        method = own
    if method is not None:
        # what the method builds on must hold by itself, stages without the overrides, which come
        # after it; what comes back has numbers for those that a mapping has as text
        mended = [item for item in overrides if not item.strip().startswith(("stage1", "stage2"))]
        base = make_config(values, mended, source=source)
        held = base.model_dump(mode="json", exclude_unset=True)
        if epochs is not None:
            held["stage1"]["epochs"] = epochs
            (held.get("stage2") or {}).pop("epochs", None)
    of_one = [item for item in overrides if item.partition("=")[0].strip() in OF_ONE]
    late = [] if epochs is None else of_one
    try:
        if method is not None:
            values = apply_method(held, str(method))
        changed = _with(values, [item for item in overrides if item not in late])
        if epochs is not None:  # over the stages that are left, of the kinds that they are by now
            changed = spread(changed, epochs, "epochs")
        changed = _with(changed, late)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    try:
        return Config.model_validate(changed)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_line(error)}") from None


def _with(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy with keys replaced."""
    changed = copy.deepcopy(dict(values))
    for item in overrides:
        key, sign, raw = item.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {item}: expected key.path=value")
        _assign(changed, key.strip(), _parse(raw, f"--set {item}"))
    return changed


def _whole(
    values: Mapping[str, Any], overrides: Iterable[str], source: str
) -> tuple[dict[str, Any], list[str], int | str | None]:
    """Values and overrides without what speaks of no key of `Config`, and the epochs of the whole
    run where they say them: the last word, as of any key."""
    rest = {key: value for key, value in values.items() if key not in ("method", "epochs")}
    epochs, where, left = values.get("epochs"), source, []
    stages = [key for key in OF_ONE if "epochs" in _group(rest, key.partition(".")[0])]
    if epochs is not None and stages:
        raise ConfigError(
            f"{source}: epochs are those of all stages, and {' and '.join(stages)} too are there: "
            "expected one of them"
        )
    for item in overrides:
        key, sign, raw = item.partition("=")
        if key.strip() == "epochs" and sign:
            epochs, where = _parse(raw, f"--set {item}"), f"--set {item}"
        elif key.strip() == "method" and sign:
            raise ConfigError(f"--set {item}: expected --method {raw.strip()}, which is no key")
        else:
            left.append(item)
    if epochs not in (None, "auto") and not (type(epochs) is int and epochs > 0):
        raise ConfigError(f"{where}: epochs: expected a number from 1 on, or auto, got {epochs!r}")
    return rest, left, epochs


def _group(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def run_config(values: Mapping[str, Any], overrides: Iterable[str] = (), *, source: str) -> Config:
    """`make_config` of what a checkpoint says of its run. One from before a key was there gets what
    was done then, where that is not today's default."""
    data = values["data"]
    if data["kind"] == "lists":
        values = {
            **values,
            "data": {"image_size": 224, "augment": "photo", "interpolation": "bilinear", **data},
        }
    config = make_config(values, overrides, source=source)
    if isinstance(config.data, ListData):
        config = config.model_copy(update={"data": settled(config.data)})
    return config


def load_config(
    path: str | Path, overrides: Iterable[str] = (), *, method: str | None = None
) -> Config:
    """Read a YAML file, or a packaged configuration by name (see `config_names`).

    Args:
        path: a file, or a packaged name such as ``icons``.
        overrides, method: see `make_config`.

    Raises:
        ConfigError: no such file, name or method, not YAML, or values that do not hold.
    """
    name = str(path)
    if name in config_names():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(path).is_file():
        text = Path(path).read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(name, config_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"packaged: {', '.join(config_names())}"
        if Path(path, "manifest.json").is_file():
            key = shlex.quote(f"data.root={json.dumps(name, ensure_ascii=False)}")
            hint = f"it is a folder of embeddings: embeddings --set {key}"
        elif Path(path, "data.yaml").is_file():
            hint = f"did you mean {Path(path, 'data.yaml')}?"
        raise ConfigError(f"no configuration file {name}; {hint}")
    values = _parse(text, name)
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: expected a mapping of keys, got {type(values).__name__}")
    return make_config(values, overrides, source=name, method=method)


def as_yaml(config: Config) -> str:
    """All keys, as `load_config` reads them back."""
    values = config.model_dump(mode="json")
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def config_names() -> list[str]:
    """Names of the packaged configurations."""
    return sorted(f.name[:-5] for f in _folder().iterdir() if f.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files("oltr_ext.config") / "recipes"


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except _TwiceError as error:
        raise ConfigError(f"{source}: {error}") from None
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"{source}: not YAML: {what}") from None


class _TwiceError(ValueError):
    """A key that a group holds twice."""


class _Loader(yaml.SafeLoader):
    """YAML forbids a key twice, and PyYAML takes the second silently."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    raise _TwiceError(
                        f"{key.value} is there twice, in lines {lines[name]} and {line}"
                    )
                lines[name] = line
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for a number."""


for _each in (_Loader, _Dumper):  # PyYAML is of YAML 1.1, to which 1e-3, 1.5e3 and -.5 are text
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\.\d+(?:[eE][-+]?\d+)?|\d+(?:\.\d*)?[eE][-+]?\d+)$", re.ASCII),
        list("-+.0123456789"),
    )


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if inner is None:
            inner = values[parent] = {}
        if isinstance(inner, str) and parent in ALONE:
            inner = values[parent] = {ALONE[parent]: inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a group of keys")
        values = inner
    values[leaf] = value


def _first_line(error: ValidationError) -> str:
    errors = error.errors()
    first = errors[0]
    # the chosen branch of a union shows up as a part of the path that the file does not have
    parts = [
        str(part)
        for n, part in enumerate(first["loc"])
        if not (n and first["loc"][n - 1] in UNIONS) and not _is_kind(first, n)
    ]
    where = ".".join(parts) or "top level"
    if first["type"] == "extra_forbidden":
        beside = _keys_beside(first["loc"]) | ({"epochs"} if len(parts) == 1 else set())
        near = difflib.get_close_matches(parts[-1], beside - {parts[-1]}, n=1)
        what = "unknown key" + (f"; did you mean {near[0]}?" if near else "")
    elif first["type"] == "missing":
        what = "this key is required" + REQUIRED.get(where, "")
    else:
        # a key of several types has an error for each
        last = len(first["loc"]) - 1
        of_key = first["loc"][:last] if _is_kind(first, last) else first["loc"]
        same = [e for e in errors if e["loc"][: len(of_key)] == of_key]
        text = " or ".join(e["msg"].removeprefix("Value error, ") for e in same)
        text = text.replace("or Input should be ", "or ")
        # of a group the text says which keys; all of it would hide them
        got = "" if isinstance(first["input"], Mapping) else f", got {first['input']!r}"
        what = f"{text[0].lower()}{text[1:]}{got}"
        errors = [first, *(e for e in errors if e not in same)]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {what}{more}"


def _is_kind(error: ErrorDetails, place: int) -> bool:
    """Whether a part of a path is no key, but one of several types that its value may have."""
    part, loc = str(error["loc"][place]), error["loc"][: place + 1]
    if part.isdigit() or error["type"] in ("extra_forbidden", "missing"):
        return False
    return "[" in part or part not in _keys_beside(loc)


def _keys_beside(loc: tuple[int | str, ...]) -> set[str]:
    """Keys that the group of a misplaced one may hold."""
    groups: list[type[BaseModel]] = [Config]
    for part in loc[:-1]:
        inside = [g for m in groups if part in m.model_fields for g in _groups(m, str(part))]
        # a part that is no key tells which of several groups was meant
        kinds: list[tuple[type[BaseModel], Any]] = [
            (g, g.model_fields["kind"].annotation) for g in groups if "kind" in g.model_fields
        ]
        chosen = [group for group, kind in kinds if part in get_args(kind)]
        groups = inside or chosen or groups
    whole = {"epochs"} if len(loc) == 1 else set()  # which `make_config` takes
    return {key for group in groups for key in group.model_fields} | whole


def _groups(model: type[BaseModel], key: str) -> list[type[BaseModel]]:
    """What may stand under a key, of the kinds that are groups of keys themselves."""
    found, left = [], [model.model_fields[key].annotation]
    while left:
        kind = left.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
        left += get_args(kind)
    return found
