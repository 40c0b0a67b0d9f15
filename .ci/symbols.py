"""Which versions of the C and C++ libraries built libraries ask for, and what manylinux_2_28 lacks.

    python .ci/symbols.py oltr_ext/*.so      # or wheels

Prints the highest version of each library, and the symbols that are newer than the policy's; ends
with 1 where there are such. Needs `objdump` (binutils).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

POLICY = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
"""Of manylinux_2_28: AlmaLinux 8, Debian 10, Ubuntu 18.10 and later."""

Version = tuple[int, ...]


def symbols(library: Path) -> dict[str, tuple[str, Version]]:
    """Undefined symbols of a library: which library's version each asks for."""
    command = ["objdump", "--dynamic-syms", str(library)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"\*UND\*.*\((GLIBCXX|GLIBC|CXXABI|GCC)_([\d.]+)\)\s+(\S+)", listed)
    return {name: (of, tuple(map(int, number.split(".")))) for of, number, name in found}


def newer(library: Path) -> dict[str, tuple[str, Version]]:
    """Those of `symbols` that the policy does not have."""
    return {name: (of, v) for name, (of, v) in symbols(library).items() if v > POLICY[of]}


def report(library: Path) -> bool:
    """Prints what a library asks for; whether that is within the policy."""
    most: dict[str, Version] = {}
    for of, version in symbols(library).values():
        most[of] = max(version, most.get(of, ()))
    print(f"{library.name}: {', '.join(written(*item) for item in sorted(most.items()))}")
    beyond = newer(library)
    for name, wanted in sorted(beyond.items()):
        print(f"  newer than manylinux_2_28: {name} ({written(*wanted)})")
    return not beyond


def written(of: str, version: Version) -> str:
    return f"{of}_{'.'.join(map(str, version))}"


def main(files: list[str]) -> int:
    good = bool(files)
    with tempfile.TemporaryDirectory() as folder:
        libraries = [Path(file) for file in files if not file.endswith(".whl")]
        for wheel in (file for file in files if file.endswith(".whl")):
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith(".so")]
                libraries += [Path(archive.extract(name, folder)) for name in names]
        for library in libraries:
            good = report(library) and good
    return 0 if good and libraries else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
