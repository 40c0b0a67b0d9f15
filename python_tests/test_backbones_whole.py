"""A net of each family from a file of weights, whole: train, be interrupted, predict, export."""

from __future__ import annotations

import json

import pytest
import torch
from nets import FAMILIES, drawn, saved
from tiny import config, same_run, stop_after

from oltr_ext.config.loading import make_config
from oltr_ext.engine import checkpoint
from oltr_ext.engine.train import train
from oltr_ext.serve.export import ABOUT, export
from oltr_ext.serve.predict import predict_images
from oltr_ext.serve.trained import load_trained


def values(data, model):
    """One epoch of three steps of stage 1, and of the memory head where its features allow."""
    made = {**config(data), "model": model}
    made["data"] |= {"image_size": 32, "augment": "gentle"}
    stage = {**made["stage1"], "epochs": 1, "lr": {"feature": 0.001, "classifier": 0.05}}
    made |= {"stage1": stage, "stage2": {**stage, "attention": False}}
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_from_weights_to_a_program(family, data, tmp_path, monkeypatch):
    name = FAMILIES[family]
    weights = saved(drawn(name), tmp_path / "weights.pth")
    given = values(data, {"backbone": f"timm:{name}", "weights": weights})
    if family != "ViT":  # which stands for all in stage 2, and in an uninterrupted run beside it
        given["stage2"] = None
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        train(make_config(given), tmp_path / "run")
    run = train(make_config(given), tmp_path / "run")
    if family == "ViT":
        train(make_config(given), tmp_path / "whole")
        same_run(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "weights.pth").unlink()  # all of it is in the run
    trained = load_trained(run, device="cpu")
    learned = checkpoint.load(run)[0]
    first = next(k for k in learned if k.startswith("model.backbone.body.") and "weight" in k)
    assert not torch.equal(learned[first], drawn(name)[first.removeprefix("model.backbone.body.")])
    files = [data / f"test_{n % 4}_{n}.png" for n in range(6)]
    found = predict_images(trained, files)
    program = export(trained, tmp_path / "model.pt2")
    about = {ABOUT: ""}
    label, confidence = torch.export.load(program, extra_files=about).module()(
        torch.stack([pixels(trained, file) for file in files])
    )
    want = torch.tensor([p.confidence for p in found], dtype=torch.float64)
    torch.testing.assert_close(confidence, want, rtol=1e-3, atol=1e-4)
    names = json.loads(about[ABOUT])["class_names"]
    clear = (want - found[0].threshold).abs() > 1e-3
    told = [None if n < 0 else names[n] for n in label.tolist()]
    pairs = zip(told, found, clear.tolist(), strict=True)
    assert all(t == p.label for t, p, sure in pairs if sure)


def pixels(trained, file):
    from oltr_ext.serve.inputs import pixels_of

    return pixels_of(trained.config.data, trained.image_shape, file)
