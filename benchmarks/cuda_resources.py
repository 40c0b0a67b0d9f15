"""Registers, shared memory and spills of every CUDA kernel, from the built library.

    python benchmarks/cuda_resources.py [--cuobjdump PATH] > benchmarks/results/cuda_resources.md

Needs the toolkit's cuobjdump (Triton's package holds one too) and no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from evidence import built_from

ROOT = Path(__file__).resolve().parent.parent
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def find_cuobjdump() -> str:
    places = [shutil.which("cuobjdump"), "/usr/local/cuda/bin/cuobjdump"]
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        places.append(str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"))
    for place in places:
        if place and Path(place).exists():
            return place
    raise SystemExit("cuda_resources: no cuobjdump was found; name one by --cuobjdump")


def usage(library: Path, cuobjdump: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """For each architecture and kernel: (registers, stack bytes, static shared, local bytes).

    Static shared memory counts the 1,024 bytes that every block reserves from sm_90 on.
    """
    text = subprocess.run(
        [cuobjdump, "--dump-resource-usage", str(library)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for part in re.split(r"^Fatbin elf code:", text, flags=re.MULTILINE)[1:]:
        arch = re.search(r"arch = (\S+)", part)
        kernels = {m[0]: tuple(map(int, m[1:])) for m in USAGE.findall(part)}
        if arch and kernels:
            found.setdefault(arch[1], {}).update(kernels)
    return found


def plain_names(mangled: list[str]) -> dict[str, str]:
    text = "\n".join(mangled)
    done = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True)
    names = {}
    for symbol, name in zip(mangled, done.stdout.splitlines(), strict=True):
        short = re.sub(r"\(anonymous namespace\)::|oltr::cuda::|oltr::|^void ", "", name)
        names[symbol] = short.split("(")[0].replace("> >", ">>")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cuobjdump", default=None)
    parser.add_argument("--library", type=Path, default=None)
    arguments = parser.parse_args()
    library = arguments.library or next((ROOT / "oltr_ext").glob("_oltr_cuda*.so"))
    found = usage(library, arguments.cuobjdump or find_cuobjdump())
    names = plain_names(sorted({k for kernels in found.values() for k in kernels}))
    archs = sorted(found, key=lambda a: int(re.sub(r"\D", "", a)))
    spilling = [
        f"{names[k]} on {a}" for a in archs for k, (_, stack, _, local) in found[a].items()
        if stack or local
    ]  # fmt: skip
    print("# Resources of the CUDA kernels\n")
    sources = built_from(library)[:12]
    print(f"CUDA sources `{sources}`. Registers a thread. Blocks have 256 threads and")
    print("128 bytes of dynamic shared memory; 1,024 or 2,048 where columns are summed; fused")
    print("passes by width and slab, (128, 32), (256, 32), (512, 16) and (512, 32), have 70, 118,")
    print("140 and 214 KB: the last one cannot run on sm_80, and only the first one on sm_120.\n")
    print(f"Stack or local memory (spills): {'; '.join(spilling) if spilling else 'none'}.\n")
    print(f"| kernel | {' | '.join(archs)} |")
    print(f"| --- |{' ---: |' * len(archs)}")
    for symbol in sorted(names, key=lambda k: names[k]):
        row = [found[a].get(symbol) for a in archs]
        cells = ["" if r is None else str(r[0]) for r in row]
        print(f"| `{names[symbol]}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
