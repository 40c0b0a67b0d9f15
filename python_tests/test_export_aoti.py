"""Packages of AOTInductor, by the C++ example: it answers as Python does, without Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import arrays, config

import oltr_ext
from oltr_ext.cli import main
from oltr_ext.config.loading import make_config
from oltr_ext.config.methods import apply_method
from oltr_ext.data import write_embeddings
from oltr_ext.engine.train import train
from oltr_ext.serve import export_aoti
from oltr_ext.serve.export import ABOUT, export
from oltr_ext.serve.predict import predict_embeddings, predict_images
from oltr_ext.serve.trained import load_trained

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "cpp"
OPS = Path(oltr_ext.__file__).parent / export_aoti.LIBRARY


@pytest.fixture(scope="module")
def label(tmp_path_factory):
    """Runs the example, built against this torch: (lines, complaints, status)."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if cmake is None or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no cmake, or no C++ compiler")
    if not (EXAMPLE / "CMakeLists.txt").is_file():
        pytest.skip("the sources of the example are not here")
    build = tmp_path_factory.mktemp("label")
    torch_folder = f"-DTORCH={Path(torch.__file__).parent}"
    for command in ([cmake, "-S", EXAMPLE, "-B", build, torch_folder], [cmake, "--build", build]):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr

    def run(*words):
        done = subprocess.run(  # an empty environment: nothing of Python's
            [str(build / "label"), *map(str, words)], capture_output=True, text=True, env={}
        )
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        return rows, done.stderr.splitlines(), done.returncode

    linked = subprocess.run(["ldd", str(build / "label")], capture_output=True, text=True)
    assert "libtorch_cpu" in linked.stdout and "python" not in linked.stdout.replace(
        str(Path(torch.__file__).parent), ""
    )
    return run


def same(rows, found):
    assert [row[0] for row in rows] == [p.path for p in found]
    assert [row[1] for row in rows] == [p.label or "unknown" for p in found]
    np.testing.assert_allclose(
        [float(row[2]) for row in rows], [p.confidence for p in found], rtol=1e-5, atol=1e-5
    )


def trained_by(method, settings, out):
    settings = {key: value for key, value in settings.items() if key != "stage2"}
    settings["stage1"] = {**settings["stage1"], "epochs": 4}
    return load_trained(train(make_config(apply_method(settings, method)), out), device="cpu")


@pytest.mark.slow
def test_photos(data, tmp_path, label, capsys):
    trained = trained_by("oltr-plus", config(data), tmp_path / "run")
    package = tmp_path / "run" / "model.aoti.pt2"
    assert main(["export", str(tmp_path / "run"), "--format", "aoti", "--any-size"]) == 0
    told = capsys.readouterr()
    assert f"program  {package}\n" in told.out and "needs: libtorch 2." in told.err
    assert "_oltr_cpu.abi3.so, loaded first (cosine_logits, meta_embedding, " in told.err
    files = []
    sizes = [(16, 16), (32, 32), (24, 40), (70, 30), (9, 9)]
    for n, file in enumerate(sorted(data.glob("*test_*.png"))):
        files.append(tmp_path / f"{file.stem}.ppm")
        Image.open(file).convert("RGB").resize(sizes[n // 3 % 5]).save(files[-1])
    found = predict_images(trained, files)
    assert len({p.label for p in found}) > 2 and None in {p.label for p in found}
    rows, complaints, status = label(package, "--ops", OPS, *files)
    assert (complaints, status) == ([], 0)
    same(rows, found)

    # what it cannot use is told, and the others are answered
    (tmp_path / "cut.ppm").write_bytes(files[0].read_bytes()[:-1])
    (tmp_path / "text.ppm").write_text("P3 1 1 255 0 0 0")
    (tmp_path / "deep.ppm").write_bytes(b"P6\n# 16 bits\n1 1\n65535\n" + bytes(6))
    Image.new("L", (16, 16)).save(tmp_path / "grey.pgm")
    wrong = [tmp_path / name for name in ("cut.ppm", "text.ppm", "deep.ppm", "grey.pgm", "no.ppm")]
    rows, complaints, status = label(package, "--ops", OPS, files[0], *wrong, files[1])
    same(rows, found[:2])
    assert status == 1
    expected = [
        "expected 768 bytes after the header, got 767",
        "expected a binary PGM, a binary PPM or a .npy",
        "expected eight bits a channel (255), got 65535",
        "expected uint8 (rows, 3, height, width), got CPUByteType [1, 1, 16, 16]",
        "expected a file that can be read",
    ]
    assert complaints == [f"label: {f}: {e}" for f, e in zip(wrong, expected, strict=True)]
    # it needs ops of the library
    rows, complaints, status = label(package, files[0])
    assert (rows, status) == ([], 2)
    assert complaints == [f"label: {package}: Could not find schema for oltr_ext::meta_embedding."]


@pytest.mark.slow
def test_embeddings(tmp_path, label):
    parts = arrays()
    write_embeddings(tmp_path / "embeddings", parts)
    settings = {**config(tmp_path), "model": {"backbone": "embedding"}}
    settings["data"] = {"kind": "embeddings", "root": str(tmp_path / "embeddings")}
    trained = trained_by("plain", settings, tmp_path / "run")
    said = []
    # of torch's own operators, and so without the library
    with oltr_ext.use_backend("reference"):
        package = export(trained, tmp_path / "it.pt2", format="aoti", say=said.append)
    assert len(said) == 1 and "op library" not in said[0]
    np.save(tmp_path / "rows.npy", parts["test"][0])
    np.save(tmp_path / "none.npy", parts["test"][0][:0])
    np.save(tmp_path / "double.npy", parts["test"][0].astype(np.float64))
    np.save(tmp_path / "turned.npy", np.asfortranarray(parts["test"][0]))
    np.save(tmp_path / "narrow.npy", np.ones((2, 5), np.float32))
    names = ["rows.npy", "none.npy", "double.npy", "turned.npy", "narrow.npy"]
    rows, complaints, status = label(package, *(tmp_path / name for name in names))
    same(rows, predict_embeddings(trained, parts["test"][0], name=str(tmp_path / "rows.npy")))
    assert status == 1 and [c.split(": ")[-1] for c in complaints] == [
        "expected float32 ('<f4')",
        "expected rows in order, not Fortran's",
        "expected float32 (rows, 6), got CPUFloatType [2, 5]",
    ]
    # the package says what it is, to Python too
    held = torch._inductor.aoti_load_package(str(package)).get_metadata()
    about = json.loads(held[ABOUT])
    assert held["class_names"].split("\n") == about["class_names"] == trained.names
    assert held["input"] == about["input"] == "float32 (rows, 6)" and held["images"] == ""
    assert float(held["threshold"]) == trained.threshold["value"]
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and export_aoti._options():
        assert held["AOTI_CPU_ISA"] == "AVX2"  # less than this processor has


def test_without_a_compiler(finished, tmp_path, capsys):
    from torch._inductor import config as inductor

    out = str(tmp_path / "it.pt2")
    # monkeypatch would leave no such key behind: findings/monkeypatched-config.sh
    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert main(["export", str(finished), "--format", "aoti", "--out", out]) == 1
    assert inductor.cpp.cxx != (None, "no-such-compiler")
    assert "format aoti compiles the program and found no C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "it.pt2").exists()
