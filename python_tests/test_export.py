"""A trained model as one program: it answers as the model does, alone."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from PIL import Image
from tiny import arrays, config
from torchvision.transforms import v2

import oltr_ext.serve
from oltr_ext.cli import main
from oltr_ext.config.loading import make_config
from oltr_ext.data import write_embeddings
from oltr_ext.data.folders import scratch_folder
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import train
from oltr_ext.serve.export import ABOUT, export
from oltr_ext.serve.predict import predict_embeddings, predict_images
from oltr_ext.serve.trained import load_trained


def read(path):
    about = {ABOUT: ""}
    program = torch.export.load(path, extra_files=about).module()
    return program, json.loads(about[ABOUT])


def same(found, label, confidence, names):
    want = torch.tensor([p.confidence for p in found], dtype=torch.float64)
    torch.testing.assert_close(confidence, want, rtol=1e-4, atol=1e-6)
    clear = [abs(p.confidence - p.threshold) > 1e-4 for p in found]
    told = [None if n < 0 else names[n] for n in label.tolist()]
    assert [t for t, c in zip(told, clear, strict=True) if c] == [
        p.label for p, c in zip(found, clear, strict=True) if c
    ]
    assert sum(clear) > len(clear) // 2


def test_photos(data, finished, tmp_path, capsys, run_python):
    assert main(["export", str(finished), "--out", str(tmp_path / "new" / "model.pt2")]) == 0
    told = capsys.readouterr()
    assert told.out == f"program  {tmp_path / 'new' / 'model.pt2'}\n"
    program, about = read(tmp_path / "new" / "model.pt2")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["model.pt2"]
    assert about["format"] == "torch" and f"needs: {about['needs']}\n" in told.err
    ops = "(cosine_logits, meta_embedding, nearest_centroid)"
    assert about["needs"].endswith(f"or later, and `import oltr_ext` first {ops}")
    trained = load_trained(finished, device="cpu")
    assert about["class_names"] == trained.class_names
    assert about["threshold"] == trained.threshold["value"]
    assert about["score"] == trained.threshold["score"]
    assert about["input"] == "uint8 (rows, 3, 16, 16)"

    files = [data / f"test_{n % 4}_{n % 6}.png" for n in range(9)]
    found = predict_images(trained, files)
    page = Path(oltr_ext.serve.__file__).with_name("EXPORT.md").read_text()
    (example,) = re.findall(r"```\n(import .*?)```", page, flags=re.DOTALL)
    where = "import os, torch; os.chdir('new'); pixels = torch.zeros(3, 3, 16, 16).byte()\n"
    said = run_python(f"{where}{example}print(len(label), names)")  # that imports no more
    assert said == f"3 {trained.class_names}\n"
    assert about["images"] == (
        "RGB, EXIF orientation applied, transparency on white, longer side resized to 16, padded "
        "to a square with the median of the border"
    )
    made = load_splits(trained.config.data).test.transform
    pixels = torch.stack([made(Image.open(file).convert("RGB")) for file in files])
    same(found, *program(pixels), trained.class_names)
    same(found[:1], *program(pixels[:1]), trained.class_names)
    assert main(["export", str(finished), "--out", str(tmp_path / "model.zip")]) == 1
    assert "expected a file named .pt2, got" in capsys.readouterr().err
    elsewhere = dataclasses.replace(trained, device=torch.device("meta"))
    with pytest.raises(ValueError, match="export: expected a model on the CPU, got one on meta"):
        export(elsewhere, tmp_path / "no.pt2")
    with pytest.raises(ValueError, match="expected a format of torch, aoti, onnx, got 'tflite'"):
        export(trained, tmp_path / "no.pt2", format="tflite")


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_any_size(data, finished, tmp_path, format):
    trained = load_trained(finished, device="cpu")
    path = tmp_path / {"torch": "it.pt2", "onnx": "it.onnx"}[format]
    export(trained, path, format=format, any_size=True)
    if format == "torch":
        program, about = read(path)
    else:
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        about = json.loads(session.get_modelmeta().custom_metadata_map[ABOUT])

        def program(x):
            return map(torch.from_numpy, session.run(None, {"input": x.numpy()}))

    assert about["input"] == "uint8 (rows, 3, height, width)"
    assert about["images"].endswith("transparency on white, of any size")
    for size in ((16, 16), (40, 31), (20, 70)):
        images = [Image.open(data / f"test_{n}_0.png").resize(size) for n in range(4)]
        pixels = torch.stack([v2.functional.pil_to_tensor(image) for image in images])
        same(predict_images(trained, images), *program(pixels), trained.class_names)


def test_any_size_that_cannot_be(data, tmp_path):
    settings = {key: value for key, value in config(data).items() if key != "stage2"}
    settings["data"] = {**settings["data"], "augment": {"fit": "crop"}}
    trained = load_trained(train(make_config(settings), tmp_path / "run"), device="cpu")
    with pytest.raises(ValueError, match="onnx cannot carry any size of images that are cropped"):
        export(trained, tmp_path / "it.onnx", format="onnx", any_size=True)
    program = read(export(trained, tmp_path / "it.pt2", any_size=True))[0]
    images = [Image.open(data / f"test_{n}_0.png").resize((40, 31)) for n in range(4)]
    pixels = torch.stack([v2.functional.pil_to_tensor(image) for image in images])
    same(predict_images(trained, images), *program(pixels), trained.class_names)


def test_of_the_reference_needs_torch_alone(finished, tmp_path, run_python):
    run_python(
        f"from oltr_ext.cli import main; main(['export', {str(finished)!r}, '--out', 'plain.pt2'])",
        OLTR_EXT_BACKEND="reference",
    )
    told = run_python(
        "import sys, torch\n"
        "program = torch.export.load('plain.pt2').module()\n"
        "print(program(torch.full((5, 3, 16, 16), 7, dtype=torch.uint8))[1].tolist())\n"
        "assert 'oltr_ext' not in sys.modules"
    )
    program = read(export(load_trained(finished, device="cpu"), tmp_path / "native.pt2"))[0]
    want = program(torch.full((5, 3, 16, 16), 7, dtype=torch.uint8))[1]
    torch.testing.assert_close(
        torch.tensor(json.loads(told), dtype=torch.float64), want, rtol=1e-4, atol=1e-6
    )


def test_embeddings(tmp_path):
    parts = arrays()
    write_embeddings(tmp_path / "embeddings", parts)
    settings = {**config(tmp_path), "model": {"backbone": "embedding"}}
    settings["data"] = {"kind": "embeddings", "root": str(tmp_path / "embeddings")}
    settings["stage2"] = None
    trained = load_trained(train(make_config(settings), tmp_path / "run"), device="cpu")
    program, about = read(export(trained, tmp_path / "model.pt2"))
    assert about["input"] == "float32 (rows, 6)"
    with pytest.raises(ValueError, match="any size is of images, and this model takes embeddings"):
        export(trained, tmp_path / "model.pt2", any_size=True)
    rows = parts["test"][0]
    same(predict_embeddings(trained, rows), *program(torch.from_numpy(rows)), trained.class_names)


def test_what_a_killed_export_leaves(tmp_path):
    """Goes with the next one; what another process is making stays."""
    code = (
        "import sys; from pathlib import Path\n"
        "from oltr_ext.data.folders import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch(); print(folder, flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "model.pt2")]
    with subprocess.Popen(words, stdin=PIPE, stdout=PIPE, text=True) as other:
        left = Path(other.stdout.readline().strip())
        with scratch_folder(tmp_path / "model.pt2") as folder:
            assert folder != left and (left / "half").exists() and not list(folder.iterdir())
        assert list(tmp_path.iterdir()) == [left]
        other.kill()
    assert left.is_dir()
    with scratch_folder(tmp_path / "model.pt2") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())
