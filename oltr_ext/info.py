"""What is installed, what was built for what, and what runs where: `oltr info`.

Works in every state of the installation, above all in a broken one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from oltr_ext._version import __version__
from oltr_ext.ops import _backend

PACKAGES = ("numpy", "torchvision", "pydantic", "safetensors", "scikit-learn")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _gpus(archs: str) -> list[dict[str, str]]:
    if not torch.cuda.is_available():
        return []
    gpus = []
    for i in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(i)
        gpus.append(
            {
                "name": torch.cuda.get_device_name(i),
                "capability": "{}.{}".format(*capability),
                "runs": _backend.coverage(archs, capability) or "nothing that was built",
            }
        )
    return gpus


def _op_backends() -> dict[str, dict[str, str]]:
    """For each op and device: ``"native"``, ``"native forward"`` or ``"reference"``."""
    asked = _backend.backend()
    table = {}
    for op in _backend.OPS:
        both = _backend.STATUS.op_devices.get(op, ())
        forward = _backend.STATUS.forward_devices.get(op, ())
        table[op] = {
            device: "reference"
            if asked == "reference" or device not in forward
            else ("native" if device in both else "native forward")
            for device in ("cpu", "cuda")
        }
    return table


def info() -> dict[str, Any]:
    """The state of the installation as plain data; never raises for what is missing or broken.

    Keys: ``versions``, ``build`` (as `_C.build_info`), ``libraries`` (``"loaded"`` or the reason
    not), ``cpu`` (as `_C.cpu_features`), ``gpus``, ``backend`` (the one asked for), ``ops``.
    """
    build: dict[str, str] = {}
    cpu: dict[str, Any] = {}
    libraries: dict[str, str] = {}
    try:
        native = importlib.import_module("oltr_ext._C")
        build, cpu = dict(native.build_info()), dict(native.cpu_features())
        libraries["_C"] = "loaded"
    except ImportError as error:
        libraries["_C"] = f"not loaded: {error}"
    for stem, failure in (
        ("_oltr_cpu", _backend.STATUS.cpu_error),
        ("_oltr_cuda", _backend.STATUS.cuda_error),
    ):
        libraries[stem] = "loaded" if failure is None else f"not loaded: {failure}"
    versions = {
        "oltr_ext": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "torch cuda": torch.version.cuda or "none",
        **{name: _installed(name) for name in PACKAGES},
    }
    return {
        "versions": versions,
        "build": build,
        "libraries": libraries,
        "cpu": cpu,
        "gpus": _gpus(build.get("cuda_archs", "")),
        "backend": _backend.backend(),
        "ops": _op_backends(),
    }


def text(state: dict[str, Any]) -> str:
    """`info()` for a reader."""
    lines: list[str] = []

    def section(title: str, rows: dict[str, Any], otherwise: str = "") -> None:
        lines.append(title)
        width = max((len(k) for k in rows), default=0)
        lines.extend(f"  {key:<{width}}  {value}" for key, value in rows.items())
        if not rows:
            lines.append(f"  {otherwise}")
        lines.append("")

    section("Versions", state["versions"])
    built = {k: v for k, v in state["build"].items() if v != ""}
    section("Built", built, "nothing: build with `pip install --no-build-isolation .`")
    section("Libraries", state["libraries"])
    features = {
        k: "yes" if v is True else "no" if v is False else v for k, v in state["cpu"].items()
    }
    section("CPU", features, "unknown: _C is not loaded")
    gpus = {
        f"{i}: {g['name']} ({g['capability']})": f"runs {g['runs']}"
        for i, g in enumerate(state["gpus"])
    }
    section("GPUs", gpus, "none that torch can use")
    ops = {
        op: ", ".join(f"{device} {how}" for device, how in devices.items())
        for op, devices in state["ops"].items()
    }
    section(f"Ops (backend {state['backend']})", ops)
    return "\n".join(lines).rstrip()


def main(argv: list[str] | None = None) -> int:
    """Prints the state of the installation; `--json` for programs."""
    parser = argparse.ArgumentParser(prog="oltr info", description=main.__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    state = info()
    print(json.dumps(state, indent=2) if arguments.json else text(state))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
