"""A program compiled by AOTInductor: for C++, without Python."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from oltr_ext.serve.export_program import Traced

__all__ = ["check", "needs", "write"]

AVX2: dict[str, str | int] = {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
"""Options of inductor, which by itself compiles for the very processor that it runs on. Products
and convolutions are libraries' calls, which choose at run time; what is compiled is what lies
between."""

LIBRARY = "_oltr_cpu.abi3.so"


def check() -> None:
    """Raises RuntimeError where there is no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise RuntimeError(
            "export: format aoti compiles the program and found no C++ compiler: install one "
            "(Debian and Ubuntu: `apt-get install g++`) or set CXX to yours"
        ) from None


def needs(it: Traced) -> str:
    """What runs the package, in words."""
    first = f"; oltr_ext's op library, {LIBRARY}, loaded first ({', '.join(it.ops)})"
    processor = "AVX2" if _options() else "what this machine's processor has"
    return (
        f"libtorch {torch.__version__.split('+')[0]}, that of `pip install torch` without its "
        f"Python or another of that version; {platform.system()} on {platform.machine()} with "
        f"{processor}, and a C library as new as here{first if it.ops else ''}"
    )


def write(it: Traced, path: Path, about: Mapping[str, str]) -> None:
    """Compile into a file, with ``about`` and each of what it holds as a text of its own, for C++
    has no parser of JSON: names a line each, what is missing empty."""
    (held,) = map(json.loads, about.values())
    names = "\n".join(" ".join(name.splitlines()) for name in held.pop("class_names"))
    texts = {key: "" if value is None else str(value) for key, value in held.items()}
    metadata = {**about, **texts, "class_names": names}
    torch._inductor.aoti_compile_and_package(
        it.program,
        package_path=str(path),
        inductor_configs={"aot_inductor.metadata": metadata, **_options()},
    )


def _options() -> dict[str, str | int]:
    """`AVX2`, where that is less than there is, and torch can be told."""
    from torch._inductor import config

    capable = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return {**AVX2} if capable and hasattr(config.cpp, "march") else {}
