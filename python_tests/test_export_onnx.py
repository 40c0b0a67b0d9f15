"""ONNX programs: every head and every score, by onnxruntime, as torch has it."""

from __future__ import annotations

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch
from head_cases import heads_of_every_kind
from PIL import Image
from tiny import arrays, config
from torch import nn

import oltr_ext
from oltr_ext.cli import main
from oltr_ext.config.loading import make_config
from oltr_ext.config.methods import METHODS, apply_method
from oltr_ext.config.schema import Config
from oltr_ext.data import write_embeddings
from oltr_ext.engine.build import build_head
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import train
from oltr_ext.nn import OLTRHead, OpenMaxHead
from oltr_ext.serve import export_onnx
from oltr_ext.serve.export import ABOUT, export
from oltr_ext.serve.export_program import Traced
from oltr_ext.serve.predict import predict_embeddings
from oltr_ext.serve.trained import load_trained

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
HEADS = heads_of_every_kind()


def session(path):
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def close(got, want):
    torch.testing.assert_close(torch.as_tensor(got), want, rtol=1e-5, atol=1e-5)


class Everything(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head
        # translated once, for they are the same of what any head gives; its own score is predict's
        self.scores = isinstance(head, OLTRHead | OpenMaxHead)

    def forward(self, x):
        out = self.head.outputs(x)
        scores = self.head.scores(out).values() if self.scores else ()
        return *self.head.predict(x), out.logits, *scores


@pytest.mark.parametrize("at", range(len(HEADS)), ids=[type(h[0]).__name__ for h in HEADS])
def test_every_head_and_score(at, tmp_path):
    head, x, y = copy.deepcopy(HEADS[at])
    head.eval().requires_grad_(False)
    head.fit_bank([(x, y)], y.bincount(minlength=head.num_classes), neighbours=3)
    head.bank.standardise(head.scores(head.outputs(x)))
    if not isinstance(head, OpenMaxHead):  # which takes no more
        head.enroll(x[:3] + torch.tensor([0, 0, 0, 0, 0, 2.0]), ["new"] * 3)
        head.remove([2])
    scores = head.scores(head.outputs(x))
    score = "openmax" if isinstance(head, OpenMaxHead) else "max_logit+nearest_feature"
    head.set_threshold(scores[score].median().item(), score)
    own = {"OLTRHead": 2, "OpenMaxHead": 1}.get(type(head).__name__, 0)
    assert len(scores) == 13 + own
    everything = Everything(head)
    with torch.no_grad(), oltr_ext.use_backend("reference"):
        program = torch.export.export(
            everything, (x[:2],), dynamic_shapes=({0: torch.export.Dim("rows")},)
        )
    export_onnx.write(Traced(program, {}, {0: "rows"}), tmp_path / "it.onnx", {})
    found = session(tmp_path / "it.onnx")
    # on a centroid, between two, and far away: what products select wrongly where they are wrong
    means = torch.stack([x[y == c].mean(dim=0) for c in (0, 1)])
    between = means.mean(dim=0) + torch.tensor([[1e-4], [-1e-4]]) * (means[1] - means[0])
    strange = torch.cat([x, torch.zeros(1, 6), 30 * x[:1], x[:1] + 1e-4, means, between])
    for rows in (strange, x[:1], x[:0]):
        with torch.no_grad():
            want = everything(rows)
        got = found.run(None, {"input": rows.numpy()})
        clear = (want[1] - head.threshold).abs() > 1e-5  # one is the threshold itself
        assert torch.equal(torch.from_numpy(got[0])[clear], want[0][clear])
        for ours, theirs in zip(got[1:], want[1:], strict=True):
            close(ours, theirs)


def test_rows_without_a_number_are_unknown(tmp_path):
    """onnx-nan-maximum: the largest of logits of which some are NaN."""

    class Answer(nn.Module):
        def forward(self, logits):
            top = logits.amax(dim=1)
            whole = logits.reshape(-1, 4, 2).amax(dim=(1, 2))  # as a backbone pools
            return torch.where(top > 0, logits.long().amax(dim=1), -1), top + 0 * whole

    logits = torch.arange(1.0, 41).reshape(5, 8)
    logits[torch.arange(4), torch.tensor([0, 1, 5, 7])] = torch.nan
    rows = torch.export.Dim("rows")
    program = torch.export.export(Answer(), (logits,), dynamic_shapes=({0: rows},))
    export_onnx.write(Traced(program, {}, {0: "rows"}), tmp_path / "it.onnx", {})
    label, top = session(tmp_path / "it.onnx").run(None, {"input": logits.numpy()})
    assert label.tolist() == [-1, -1, -1, -1, 40]
    np.testing.assert_array_equal(top, logits.amax(dim=1))


def test_those_are_the_heads_of_every_method(data):
    kinds = set()
    for name in METHODS:
        settings = {k: v for k, v in config(data).items() if k != "stage2"}
        made: Config = make_config(apply_method(settings, name))
        kinds.add(type(build_head(made.stage2 or made.stage1, 6, [14, 9, 4, 3])))
    assert kinds == {type(head) for head, *_ in HEADS}


def test_photos(data, finished, tmp_path, capsys):
    out = tmp_path / "new" / "model.onnx"
    assert main(["export", str(finished), "--format", "onnx", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert f"program  {out}\n" in told.out and "needs: a runtime for ONNX opset 18" in told.err
    assert [file.name for file in out.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    (props,) = model.metadata_props
    about = json.loads(props.value)
    trained = load_trained(finished, device="cpu")
    assert props.key == ABOUT and about["class_names"] == trained.names
    assert about["needs"] in told.err and about["format"] == "onnx"

    found = session(out)
    (given,), answers = found.get_inputs(), found.get_outputs()
    assert (given.name, given.type, given.shape) == ("input", "tensor(uint8)", ["rows", 3, 16, 16])
    assert [(o.name, o.type) for o in answers] == [
        ("label", "tensor(int64)"),
        ("confidence", "tensor(double)"),
    ]
    made = load_splits(trained.config.data).test.transform
    files = [data / f"test_{n % 4}_{n % 6}.png" for n in range(9)]
    pixels = torch.stack([made(Image.open(file).convert("RGB")) for file in files])
    native = torch.export.load(export(trained, tmp_path / "model.pt2")).module()
    for rows in (pixels, pixels[:1]):
        label, confidence = found.run(None, {"input": rows.numpy()})
        want = native(rows)
        close(confidence, want[1])
        assert label.tolist() == want[0].tolist()


def test_embeddings(tmp_path):
    parts = arrays()
    write_embeddings(tmp_path / "embeddings", parts)
    settings = {**config(tmp_path), "model": {"backbone": "embedding"}}
    settings["data"] = {"kind": "embeddings", "root": str(tmp_path / "embeddings")}
    settings["stage2"] = None
    trained = load_trained(train(make_config(settings), tmp_path / "run"), device="cpu")
    path = export(trained, tmp_path / "model.onnx", format="onnx")
    rows = parts["test"][0]
    label, confidence = session(path).run(None, {"input": rows})
    found = predict_embeddings(trained, rows)
    close(confidence, torch.tensor([p.confidence for p in found], dtype=torch.float64))
    names = [None if n < 0 else trained.names[n] for n in np.asarray(label)]
    assert names == [p.label for p in found]


def test_what_is_missing_is_named(finished, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "model.pt2")
    assert main(["export", str(finished), "--format", "onnx", "--out", out]) == 1
    assert "export: expected a file named .onnx, got" in capsys.readouterr().err
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else there(name, *a)
    )
    assert main(["export", str(finished), "--format", "onnx"]) == 1
    told = capsys.readouterr().err
    assert "export: format onnx needs onnx: pip install oltr_ext[onnx]" in told
