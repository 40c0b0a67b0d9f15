"""A finished run from before a score was there."""

from __future__ import annotations

import shutil

from test_settle import data, runs, settings  # noqa: F401

from oltr_ext.engine import checkpoint
from oltr_ext.engine.train import _Run, train
from oltr_ext.serve.trained import load_trained


def test_a_run_of_before_gets_today_s_scores_by_the_same_command(
    data,  # noqa: F811
    runs,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    shutil.copytree(runs / "memory", tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    tensors, header = checkpoint.load(path)
    whole = set(tensors)
    for name in ("background", "middle", "neighbours", "residual", "origin", "alpha"):
        del tensors[f"model.head.bank.{name}"]
    del header["settled"]
    header["threshold"] = {**header["threshold"], "score": "nearest_feature", "value": -0.1}
    tensors["model.head.score_index"].fill_(7)
    checkpoint.save(path, tensors, header)
    old = load_trained(path, device="cpu")  # it answers as it did
    assert old.model.head.score == "nearest_feature" and "vim" not in old.model.head.bank.names
    monkeypatch.setattr(_Run, "step", None)
    train(settings(data, "memory"), tmp_path / "run")
    assert path.read_bytes() == (runs / "memory" / "model.safetensors").read_bytes()
    assert set(checkpoint.load(path)[0]) == whole
    written = path.stat().st_mtime_ns
    train(settings(data, "memory"), tmp_path / "run")
    assert path.stat().st_mtime_ns == written
