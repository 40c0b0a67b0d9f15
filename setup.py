"""Builds three binaries into `oltr_ext/` and prints every decision on the way.

    _oltr_cpu   the CPU ops, on LibTorch's stable ABI; loaded by torch.ops.load_library
    _oltr_cuda  the CUDA ops, likewise; only where a usable CUDA toolkit is found
    _C          a pybind11 module for what needs no tensor: build info, CPU features, launch plans

Environment: OLTR_EXT_WITH_CUDA=auto|1|0, CUDA_HOME, TORCH_CUDA_ARCH_LIST, CXX, MAX_JOBS.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import setuptools
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
MIN_TORCH = (2, 11)
MIN_SETUPTOOLS = 77  # for the licence in pyproject.toml
# Instruction sets are chosen inside the sources and dispatched at run time, hence no -march;
# BuildExtension adds the C++ standard that the torch at hand wants, hence no -std.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
CXX_FLAGS = ["-O3", STABLE_ABI, "-fvisibility=hidden", "-Wno-psabi"]
# Python's own flags may ask for debug info; sources are named from the root, wherever that is.
PLAIN_FLAGS = ["-g0", f"-ffile-prefix-map={ROOT}/=", f"-I{CSRC}"]
NVCC_FLAGS = ["-O3", STABLE_ABI, "-DUSE_CUDA", "-Xcompiler=-fvisibility=hidden", f"-I{CSRC}"]
CUDA_FOLDER = Path("/usr/local/cuda")  # where NVIDIA's installers put it
WANTED_ARCHS = ("8.0", "9.0", "10.0", "12.0")  # A100, H100, B200, RTX 50; PTX of the last


def say(message: str) -> None:
    print(f"oltr_ext build: {message}", flush=True)


def stop(message: str) -> NoReturn:
    sys.exit(f"oltr_ext build: {message}")


def sources(*patterns: str) -> list[str]:
    """Source files relative to the root, as setuptools wants them."""
    return sorted(str(p.relative_to(ROOT)) for g in patterns for p in CSRC.glob(g))


# --- what must be there -------------------------------------------------------------------------


def need_setuptools() -> None:
    """An older one cannot read pyproject.toml, and says so in its own words."""
    if int(setuptools.__version__.split(".")[0]) >= MIN_SETUPTOOLS:
        return
    try:
        wants = importlib.metadata.requires("torch") or []
    except importlib.metadata.PackageNotFoundError:
        wants = []
    limit = re.search(r"<\d+", "".join(w for w in wants if w.startswith("setuptools")))
    wanted = f"setuptools>={MIN_SETUPTOOLS}{f',{limit[0]}' if limit else ''}"
    stop(
        f'setuptools {setuptools.__version__} is too old: run `pip install "{wanted}"` and build '
        "again, or drop --no-build-isolation."
    )


def need_torch() -> str:
    if importlib.util.find_spec("torch") is None:
        stop(
            'torch is missing from the build environment: run `pip install "torch>=2.11" '
            f'"setuptools>={MIN_SETUPTOOLS}" ninja pybind11` and build again, or drop '
            "--no-build-isolation."
        )
    import torch

    version = torch.__version__
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < MIN_TORCH:
        stop(f'torch {version} is too old: run `pip install "torch>=2.11"` and build again.')
    return version


def need_module(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        stop(f"{name} is missing from the build environment: run `pip install {name}`.")


def need_ninja() -> None:
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        # An environment that is used without being activated has its ninja off PATH.
        os.environ["PATH"] = f"{ninja.BIN_DIR}{os.pathsep}{os.environ.get('PATH', '')}"
    if shutil.which("ninja") is None:
        stop("ninja is missing from the build environment: run `pip install ninja`.")


def need_compiler() -> str:
    """The C++ compiler's first line of --version; exports CXX for torch and setuptools alike."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if shutil.which(name.split()[0]):
            os.environ["CXX"] = name
            out = subprocess.run([*name.split(), "--version"], capture_output=True, text=True)
            return out.stdout.splitlines()[0] if out.stdout else name
    looked = f"CXX={named} is not on PATH" if named else "none of c++, g++, clang++ is on PATH"
    stop(
        f"no C++ compiler ({looked}): install one (Debian and Ubuntu: `apt-get install g++`, "
        "Fedora: `dnf install gcc-c++`) or set CXX to yours."
    )


def need_python_headers() -> None:
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        stop(
            f"Python.h is missing from {include}: install the headers of this Python "
            "(Debian and Ubuntu: `apt-get install python3-dev`)."
        )


# --- CUDA ---------------------------------------------------------------------------------------


def toolkit_gaps(home: Path) -> list[str]:
    """What a CUDA toolkit at `home` lacks; empty if usable."""
    gaps = []
    if not os.access(home / "bin" / "nvcc", os.X_OK):
        gaps.append("bin/nvcc")
    if not (home / "include" / "cuda_runtime.h").is_file():
        gaps.append("include/cuda_runtime.h")
    libs = ["lib64", "lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"]
    if not any((home / d / "libcudart.so").exists() for d in libs):
        gaps.append("libcudart.so")
    return gaps


def nvcc_home() -> Path | None:
    """The toolkit of the nvcc on PATH. nvcc itself is asked, for it may be a wrapper script."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    dry = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True)
    here = re.search(r"_HERE_=(.+)", dry.stderr.decode(errors="replace"))
    return (Path(here[1].strip()) if here else Path(nvcc).resolve().parent).parent


def find_toolkit() -> tuple[Path | None, str]:
    """(folder of a usable CUDA toolkit or None, what was found, as a clause)."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    # A toolkit that was named is the one meant: no other is taken in its place.
    places = [Path(named)] if named else [CUDA_FOLDER, nvcc_home()]
    partial = []
    for home in places:
        if home is None or not home.is_dir():
            continue
        gaps = toolkit_gaps(home)
        if not gaps:
            return home, f"toolkit at {home}"
        if len(gaps) < 3 or named:
            partial.append(f"the CUDA toolkit at {home} lacks {', '.join(gaps)}")
    if partial:
        return None, "; ".join(dict.fromkeys(partial))
    return None, f"CUDA_HOME={named} is not a folder" if named else "no CUDA toolkit was found"


def nvcc_report(home: Path) -> tuple[str, list[str]]:
    """(release such as "13.0", architectures such as ["8.0", ...]) of the toolkit's nvcc."""
    nvcc = str(home / "bin" / "nvcc")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+\.\d+)", version)
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    known = [f"{n[:-1]}.{n[-1]}" for n in re.findall(r"compute_(\d+)\b", listed)]
    return (release[1] if release else "unknown"), known


def decide_cuda() -> tuple[Path | None, str, str]:
    """(toolkit or None, CUDA release, the decision in words); sets CUDA_HOME and the arch list.

    A GPU in this machine has no say: machines without one must build for those with one.
    """
    wish = os.environ.get("OLTR_EXT_WITH_CUDA", "auto").strip().lower()
    if wish not in ("auto", "1", "0"):
        stop(f"OLTR_EXT_WITH_CUDA={wish!r} is not understood: use auto, 1 or 0.")
    if wish == "0":
        return None, "", "not built: OLTR_EXT_WITH_CUDA=0"
    import torch

    repair = ""
    home, found = find_toolkit()
    release = ""
    if home is None:
        repair = "install the whole toolkit or set CUDA_HOME to its folder"
    elif torch.version.cuda is None:
        home, found = None, f"torch {torch.__version__} was built without CUDA"
        repair = "install a torch with CUDA"
    else:
        release, known = nvcc_report(home)
        theirs = torch.version.cuda
        if release.split(".")[0] != theirs.split(".")[0]:
            found = f"nvcc is CUDA {release} and torch is CUDA {theirs}"
            repair = f"set CUDA_HOME to a toolkit of CUDA {theirs.split('.')[0]}"
            home = None
        elif find_cublas(home) is None:
            found = f"neither the toolkit at {home} nor torch's packages hold cuBLAS"
            repair = "install the whole toolkit"
            home = None
    if home is None:
        if wish == "1":
            stop(
                f"OLTR_EXT_WITH_CUDA=1, but {found}: {repair}, "
                "or build without CUDA by OLTR_EXT_WITH_CUDA=0."
            )
        return None, "", f"not built: {found} (to have it, {repair})"
    os.environ["CUDA_HOME"] = str(home)
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        archs = [a for a in WANTED_ARCHS if a in known] or known[-1:] or ["8.0"]
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(archs) + "+PTX"
    return home, release, f"built: CUDA {release}, {found}"


def find_cublas(home: Path) -> tuple[list[str], list[str]] | None:
    """(compiler flags, link arguments) for cuBLAS: the toolkit's, else that of torch's packages."""
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(p) for p in spec.submodule_search_locations or []] if spec else []
    for place in [home, *(d for p in packages for d in sorted(p.iterdir()))]:
        if not (place / "include" / "cublas_v2.h").is_file():
            continue
        for folder in ("lib64", "lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"):
            for library in sorted((place / folder).glob("libcublas.so*")):
                # Its soname is what the loader looks for, and torch has that loaded already.
                return [f"-I{place / 'include'}"], [f"-L{library.parent}", f"-l:{library.name}"]
    return None


def decide_amx() -> tuple[list[str], str]:
    """(compiler flags, the decision in words): whether the assembler knows the instructions."""
    probe = 'int main() { asm volatile("tdpbf16ps %tmm2, %tmm1, %tmm0"); }'
    command = [*os.environ["CXX"].split(), "-x", "c++", "-c", "-", "-o", os.devnull]
    if subprocess.run(command, input=probe, capture_output=True, text=True).returncode != 0:
        return [], f"not built: the assembler of {os.environ['CXX']} does not know them"
    return ["-DOLTR_AMX"], "built"


# --- build info ---------------------------------------------------------------------------------


def version() -> str:
    text = (ROOT / "oltr_ext" / "_version.py").read_text()
    return re.search(r'__version__ = "([^"]+)"', text)[1]  # type: ignore[index]


def git_hash() -> str:
    if not (ROOT / ".git").exists():
        return ""
    try:
        run = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def load_evidence() -> ModuleType:
    """benchmarks/evidence.py, which knows what of these sources was run on a GPU."""
    spec = importlib.util.spec_from_file_location("evidence", ROOT / "benchmarks" / "evidence.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def write_build_info(info: dict[str, str], cuda_sources: str) -> Path:
    """Two headers, touched only when their text changes; returns their folder."""
    rows = []
    for key, value in info.items():
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        rows.append(f'    {{"{key}", "{quoted}"}},')
    folder = ROOT / "build" / "include"
    folder.mkdir(parents=True, exist_ok=True)
    for name, define in (
        ("oltr_build_info.h", "OLTR_BUILD_INFO \\\n" + " \\\n".join(rows)),  # for bindings.cpp
        ("oltr_cuda_sources.h", f'OLTR_CUDA_SOURCES "{cuda_sources}"'),  # for ops_cuda.cpp
    ):
        header, text = folder / name, f"// Written by setup.py.\n#define {define}\n"
        if not header.is_file() or header.read_text() != text:
            header.write_text(text)
    return folder


# --- the extensions -----------------------------------------------------------------------------


def extensions() -> tuple[list[Extension], dict[str, type]]:
    torch_version = need_torch()
    need_module("pybind11")
    need_ninja()
    compiler = need_compiler()
    need_python_headers()
    toolkit, cuda_release, decision = decide_cuda()
    say(f"version {version()}, Python {sys.version.split()[0]}, torch {torch_version}")
    say(f"C++ compiler: {os.environ['CXX']} ({compiler}), flags {' '.join(CXX_FLAGS)}")
    say(f"CUDA library {decision}")

    amx, amx_decision = decide_amx()
    say(f"AMX tiles {amx_decision}")
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    stable = {"py_limited_api": True}  # no libtorch_python: these are op libraries, not modules
    ops = CppExtension(
        "oltr_ext._oltr_cpu",
        sources("schema.cpp", "torch/*_cpu.cpp", "cpu/*.cpp"),
        extra_compile_args=[*CXX_FLAGS, *PLAIN_FLAGS, *amx],
        **stable,
    )
    archs = os.environ["TORCH_CUDA_ARCH_LIST"] if toolkit is not None else ""
    evidence = load_evidence()
    info = {
        "version": version(),
        "git": git_hash(),
        "python": sys.version.split()[0],
        "torch": torch_version,
        "torch_cuda": torch.version.cuda or "",
        "compiler": compiler,
        "cxx_flags": " ".join(CXX_FLAGS),
        "amx": amx_decision,
        "cuda": cuda_release,
        "cuda_archs": archs,
        "cuda_library": decision,
        "cuda_sources": evidence.cuda_sources()[:12],
        "cuda_verified": evidence.verified(),
    }
    written = str(write_build_info(info, evidence.cuda_sources()))
    built = [ops]
    if toolkit is not None:
        cublas = find_cublas(toolkit)
        assert cublas is not None  # or decide_cuda() had said no
        say(f"CUDA architectures: {archs}, flags {' '.join(NVCC_FLAGS)}")
        built.append(
            CUDAExtension(
                "oltr_ext._oltr_cuda",
                sources("torch/*_cuda.cpp", "cuda/*.cpp", "cuda/*.cu"),
                extra_compile_args={
                    "cxx": [*CXX_FLAGS, "-DUSE_CUDA", *PLAIN_FLAGS, *cublas[0]],
                    "nvcc": NVCC_FLAGS,
                },
                include_dirs=[written],
                extra_link_args=cublas[1],
                **stable,
            )
        )
    built.append(
        Extension(
            "oltr_ext._C",
            sources("bindings.cpp", "cpu/dispatch.cpp"),
            include_dirs=[written, pybind11.get_include()],
            extra_compile_args=["-O2", "-fvisibility=hidden", *PLAIN_FLAGS, *amx],
            language="c++",
        )
    )

    class Build(BuildExtension):
        """Leaves staleness to ninja and keeps the objects of an editable install."""

        def finalize_options(self) -> None:
            super().finalize_options()
            self.force = True
            if self.editable_mode:
                self.build_temp = str(ROOT / "build" / "editable")
            # A library of an earlier build with CUDA would be shipped or loaded with this one.
            here = [ROOT / "oltr_ext"] if self.editable_mode or self.inplace else []
            for folder in [Path(self.build_lib) / "oltr_ext", *here]:
                for stale in folder.glob("_oltr_cuda*.so") if toolkit is None else []:
                    say(f"removing {stale} of an earlier build")
                    stale.unlink()

        def build_extension(self, ext: Extension) -> None:
            whole, self.build_temp = self.build_temp, str(Path(self.build_temp) / ext.name)
            super().build_extension(ext)  # own objects: two extensions may share a source
            self.build_temp = whole

    return built, {"build_ext": Build}


# Metadata and sdist need neither torch nor a compiler.
BUILDS = {"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"}

if __name__ == "__main__":
    need_setuptools()
    ext_modules, cmdclass = extensions() if BUILDS & set(sys.argv[1:]) else ([], {})
    setup(ext_modules=ext_modules, cmdclass=cmdclass)
