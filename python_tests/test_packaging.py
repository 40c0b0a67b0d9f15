"""What is shipped and how it is built: decisions, refusals, sdist, wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import oltr_ext

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ["csrc", "examples", "oltr_ext", "python_tests", "benchmarks"]
BUILT = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "*.pyc")


def copy_tree(target: Path) -> Path:
    """The sources alone, so that nothing built here can pass for something shipped."""
    target.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, target)
        elif path.name in [*SHIPPED, ".ci", "docs", "configs"]:
            shutil.copytree(path, target / path.name, ignore=BUILT)
    return target


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree") / "oltr_ext")


def python(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, "MAX_JOBS": "2", **env},
        capture_output=True,
        text=True,
        check=False,
    )


# --- decisions ----------------------------------------------------------------------------------


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """setup.py as a module, on a machine that has no CUDA toolkit."""
    spec = importlib.util.spec_from_file_location("oltr_ext_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CUDA_FOLDER", tmp_path / "no-cuda-here")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "OLTR_EXT_WITH_CUDA"):
        monkeypatch.setenv(name, "")
    return module


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def fake_toolkit(home: Path, release: str = "13.0", runtime: bool = True) -> Path:
    answers = f"""case "$*" in
      --version) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
      --list-gpu-arch) printf 'compute_%s\\n' 75 80 90 120 ;;
      --dryrun*) echo '#$ _HERE_={home}/bin' >&2 ;;
    esac"""
    script(home / "bin" / "nvcc", answers)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    (home / "lib64").mkdir()
    if runtime:
        (home / "lib64" / "libcudart.so").touch()
    return home


def refusal(build: ModuleType) -> str:
    with pytest.raises(SystemExit) as error:
        build.decide_cuda()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_zero_builds_without_cuda_even_where_there_is_a_toolkit(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path / "cuda")))
    monkeypatch.setenv("OLTR_EXT_WITH_CUDA", "0")
    assert build.decide_cuda() == (None, "", "not built: OLTR_EXT_WITH_CUDA=0")


@pytest.mark.parametrize("wish", ["", "auto", "1"])
def test_a_toolkit_decides_and_a_gpu_does_not(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wish: str
) -> None:
    def no_gpu() -> bool:
        raise AssertionError("the build asked for a GPU")

    monkeypatch.setattr(torch.cuda, "is_available", no_gpu)
    monkeypatch.setattr(torch.cuda, "device_count", no_gpu)
    home = fake_toolkit(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(home))
    if wish:
        monkeypatch.setenv("OLTR_EXT_WITH_CUDA", wish)
    else:
        monkeypatch.delenv("OLTR_EXT_WITH_CUDA")
    assert build.decide_cuda() == (home, "13.0", f"built: CUDA 13.0, toolkit at {home}")
    assert os.environ["CUDA_HOME"] == str(home)
    # what this nvcc knows of the wanted ones; PTX of the newest
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0;12.0+PTX"


def test_the_users_architectures_stand(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path / "cuda")))
    monkeypatch.setenv("OLTR_EXT_WITH_CUDA", "auto")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    build.decide_cuda()
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.6"


def test_a_wrapper_nvcc_leads_to_the_real_toolkit(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = fake_toolkit(tmp_path / "elsewhere" / "cuda")
    script(tmp_path / "bin" / "nvcc", f'exec {home}/bin/nvcc "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("OLTR_EXT_WITH_CUDA", "1")
    assert build.decide_cuda()[0] == home


@pytest.mark.parametrize("wish", ["auto", "1"])
def test_a_partial_toolkit_is_named(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wish: str
) -> None:
    home = fake_toolkit(tmp_path / "cuda", runtime=False)
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("OLTR_EXT_WITH_CUDA", wish)
    message = refusal(build) if wish == "1" else build.decide_cuda()[2]
    assert f"the CUDA toolkit at {home} lacks libcudart.so" in message
    assert "install the whole toolkit or set CUDA_HOME" in message


def test_one_without_a_toolkit_names_the_repair(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLTR_EXT_WITH_CUDA", "1")
    message = refusal(build)
    assert "no CUDA toolkit was found: install the whole toolkit or set CUDA_HOME" in message
    assert "OLTR_EXT_WITH_CUDA=0" in message
    monkeypatch.setenv("OLTR_EXT_WITH_CUDA", "auto")
    assert build.decide_cuda()[2].startswith("not built: no CUDA toolkit was found")


def test_cuda_of_torch_and_of_nvcc_must_agree(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path / "cuda", release="12.8")))
    monkeypatch.setenv("OLTR_EXT_WITH_CUDA", "1")
    assert "nvcc is CUDA 12.8 and torch is CUDA 13.0" in refusal(build)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "was built without CUDA: install a torch with CUDA" in refusal(build)
    monkeypatch.setenv("OLTR_EXT_WITH_CUDA", "yes")
    assert "use auto, 1 or 0" in refusal(build)


# --- refusals -----------------------------------------------------------------------------------


def refused(tree: Path, **env: str) -> str:
    run = python("setup.py", "build_ext", cwd=tree, **env)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("oltr_ext build: ")]
    assert len(lines) == 1
    return lines[0]


def without(module: str, folder: Path) -> str:
    """A PYTHONPATH under which `module` is not to be found."""
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    return str(folder)


def test_missing_compiler(tree: Path) -> None:
    message = refused(tree, CXX="no-such-compiler")
    assert "no C++ compiler (CXX=no-such-compiler is not on PATH): install one" in message


def test_missing_torch(tree: Path, tmp_path: Path) -> None:
    message = refused(tree, PYTHONPATH=without("torch", tmp_path))
    assert 'torch is missing from the build environment: run `pip install "torch>=2.11"' in message


@pytest.mark.parametrize(
    ("wants", "named"),
    [(["setuptools<82", "sympy"], ">=77,<82"), (["setuptools>=77.0.3"], ">=77"), (None, ">=77")],
)
def test_an_old_setuptools_is_told_with_what_torch_takes(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, wants: list[str] | None, named: str
) -> None:
    def requires(name: str) -> list[str]:
        if wants is None:
            raise build.importlib.metadata.PackageNotFoundError(name)
        return wants

    build.need_setuptools()
    monkeypatch.setattr(build.setuptools, "__version__", "65.5.0")
    monkeypatch.setattr(build.importlib.metadata, "requires", requires)
    with pytest.raises(SystemExit) as stopped:
        build.need_setuptools()
    assert f'setuptools 65.5.0 is too old: run `pip install "setuptools{named}"`' in str(
        stopped.value
    )


def test_missing_pybind11(tree: Path, tmp_path: Path) -> None:
    message = refused(tree, PYTHONPATH=without("pybind11", tmp_path))
    assert "run `pip install pybind11`" in message


def test_pip_shows_the_sentence(tree: Path, tmp_path: Path) -> None:
    run = python(
        *["-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "."],
        cwd=tree,
        CXX="no-such-compiler",
        PIP_WHEEL_DIR=str(tmp_path),
    )
    assert run.returncode != 0
    assert "no C++ compiler (CXX=no-such-compiler is not on PATH)" in run.stdout + run.stderr


# --- sdist and wheel ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The source distribution, unpacked; made where neither torch nor a compiler can be found."""
    out = tmp_path_factory.mktemp("sdist")
    run = python(
        *f"-m build --sdist --no-isolation --outdir {out} .".split(),
        cwd=tree,
        CXX="no-such-compiler",
        PYTHONPATH=without("torch", tmp_path_factory.mktemp("no-torch")),
    )
    assert run.returncode == 0, run.stderr
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(out, filter="data")
    archive.unlink()
    (unpacked,) = out.iterdir()
    yield unpacked


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_sdist_holds_every_source(tree: Path, sdist: Path) -> None:
    wanted = {f for f in files(tree) if f.split("/")[0] in SHIPPED or f.endswith((".py", ".toml"))}
    assert {"setup.py", "csrc/schema.cpp", "csrc/cuda/nearest_centroid_kernel.cu"} <= wanted
    assert wanted - files(sdist) == set()


@pytest.fixture(scope="module")
def site(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder holding what the wheel made from the sdist installs.

    Built without optimisation, in a tenth of the time: the last -O that a compiler is given holds.
    """
    out = tmp_path_factory.mktemp("wheel")
    compiler = tmp_path_factory.mktemp("bin") / "c++"
    script(compiler, f'exec {os.environ.get("CXX", "c++")} "$@" -O0')
    run = python(
        *f"-m pip wheel --no-build-isolation --no-deps --no-index -w {out} .".split(),
        cwd=sdist,
        CXX=str(compiler),
        OLTR_EXT_WITH_CUDA="0",
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = out.glob("*.whl")
    assert zipfile.ZipFile(wheel).testzip() is None
    site = tmp_path_factory.mktemp("site")
    run = python(*f"-m pip install --no-deps --no-index --target {site} {wheel}".split(), cwd=out)
    assert run.returncode == 0, run.stderr
    return site


@pytest.mark.slow
def test_wheel_holds_code_data_and_libraries_alone(tree: Path, site: Path) -> None:
    installed = {f for f in files(site) if f.startswith("oltr_ext/") and "__pycache__" not in f}
    libraries = {f for f in installed if f.endswith(".so")}
    assert {Path(f).name.split(".")[0] for f in libraries} == {"_C", "_oltr_cpu"}
    # build scripts aside, the package is the folder oltr_ext and nothing beside it
    assert installed - libraries == {f for f in files(tree) if f.startswith("oltr_ext/")}
    assert {p.name for p in site.iterdir()} - {"oltr_ext", "bin"} == {
        p.name for p in site.glob("oltr_ext-*.dist-info")
    }


@pytest.mark.slow
def test_wheel_works_from_another_folder(site: Path, tmp_path: Path) -> None:
    program = """
import torch, oltr_ext
from oltr_ext import ops
print(oltr_ext.__file__)
x, memory = torch.randn(3, 5), torch.randn(7, 5)
distance, index = ops.nearest_centroid(x, memory)
torch.testing.assert_close(distance, torch.cdist(x, memory).amin(1))
"""
    # An editable install in this environment would lend the wheel what it lacks.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in f.__module__]\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{site}", "OLTR_EXT_BACKEND": "native"}
    run = python("-c", program, cwd=tmp_path, **env)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).parent.parent == site
    run = python("-m", "oltr_ext.info", cwd=tmp_path, **env)
    assert run.returncode == 0, run.stderr
    assert "not built: OLTR_EXT_WITH_CUDA=0" in run.stdout


# --- older systems ------------------------------------------------------------------------------

# What this system's tools take from a newer library though an older one has it: under a version of
# before, or in the compiler's own part of it.
HAS_OLDER = re.compile(
    r"exp|log|pow|dl(sym|open|close|error)|pthread_\w+|__isoc23_\w+|__libc_single_threaded"
    r"|_ZSt28__throw_bad_array_new_lengthv|_ZNSt15__exception_ptr13exception_ptr\d+_M_\w+"
)


@pytest.fixture
def symbols() -> ModuleType:
    if sys.platform != "linux" or shutil.which("objdump") is None:
        pytest.skip("there is no objdump, or this is not Linux")
    spec = importlib.util.spec_from_file_location("symbols", ROOT / ".ci" / "symbols.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_libraries_use_nothing_that_manylinux_2_28_lacks(symbols: ModuleType) -> None:
    libraries = [*Path(oltr_ext.__file__).parent.glob("*.so")]
    assert {library.name.split(".")[0] for library in libraries} >= {"_C", "_oltr_cpu"}
    for library in libraries:
        assert any(of == "GLIBC" for of, _ in symbols.symbols(library).values())
        missing = [name for name in symbols.newer(library) if not HAS_OLDER.fullmatch(name)]
        assert missing == [], library


def test_a_newer_symbol_is_found(
    symbols: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or os.confstr("CS_GNU_LIBC_VERSION") < "glibc 2.36":
        pytest.skip("there is no C++ compiler, or no glibc of 2.36")
    (tmp_path / "it.cpp").write_text("#include <stdlib.h>\nint it() { return arc4random(); }\n")
    command = [compiler, "-shared", "-fPIC", "it.cpp", "-o", "it.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with zipfile.ZipFile(tmp_path / "it.whl", "w") as wheel:
        wheel.write(tmp_path / "it.so", "it/it.so")
    for file in ("it.so", "it.whl"):
        assert symbols.main([str(tmp_path / file)]) == 1
        assert "newer than manylinux_2_28: arc4random (GLIBC_2.36)" in capsys.readouterr().out
    assert symbols.main([]) == 1


def test_wheels_are_tested_by_what_the_oldest_torch_is() -> None:
    config = (ROOT / "pyproject.toml").read_text().split("[tool.cibuildwheel]")[1]
    makefile = (ROOT / "Makefile").read_text()
    wanted = makefile.split("\nOP_TESTS :=")[1].split("\n\n")[0]
    names = set(re.findall(r"test_\w+\.py", wanted))
    assert names == set(re.findall(r"test_\w+\.py", config)) and len(names) > 6
    assert all((ROOT / "python_tests" / name).is_file() for name in names)
