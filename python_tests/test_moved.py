"""Old import paths: they work for a release, give the same objects, and say where these are."""

from __future__ import annotations

import importlib
import pickle
import re
import warnings
from pathlib import Path

import pytest

from oltr_ext._moved import MOVED
from oltr_ext._version import __version__

ROOT = Path(__file__).resolve().parent.parent

PUBLIC = {
    "assess": "Assessment assess compare report table REPORT",
    "check": "DataCheck PartCheck check_data check_table",
    "config": "ConfigError config_names load_config make_config run_config",
    "demo": "demo",
    "embed": "embed",
    "export": "ABOUT export",
    "methods": "DEMO METHODS Method apply_method",
    "predict": "Embedder Prediction Trained load_embedder load_trained predict_embeddings "
    "predict_images read_model MODEL",
    "schema": "Config ListData PackData IconsData EmbeddingsData MemoryStage OpenSet",
}


@pytest.mark.parametrize(("module", "names"), PUBLIC.items())
def test_an_old_path_gives_what_has_moved_and_says_where(module: str, names: str) -> None:
    old = importlib.import_module(f"oltr_ext.engine.{module}")
    for name in names.split():
        with pytest.warns(DeprecationWarning, match=f"^oltr_ext.engine.{module}.{name} has moved"):
            found = getattr(old, name)
        here = [importlib.import_module(home) for home in MOVED[old.__name__]]
        assert any(found is getattr(each, name, None) for each in here)


def test_every_way_of_importing_works_and_the_warning_is_the_callers() -> None:
    with pytest.warns(DeprecationWarning, match="to oltr_ext.serve.trained.load_trained;") as seen:
        from oltr_ext.engine.predict import load_trained
    assert [Path(w.filename) for w in seen] == [Path(__file__)]
    with pytest.warns(DeprecationWarning):
        from oltr_ext.engine import predict

        assert predict.load_trained is load_trained
    with pytest.warns(DeprecationWarning):
        assert pickle.loads(b"coltr_ext.engine.schema\nConfig\n.").__name__ == "Config"


def test_what_was_never_there_is_missing_as_ever() -> None:
    from oltr_ext.engine import predict

    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = predict.nothing
    with pytest.raises(AttributeError):
        _ = predict._pixels  # private: no promise
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("oltr_ext.engine.nothing")


def test_training_stays_where_it_was() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from oltr_ext.engine.train import OtherRunError, TrainingError, train
    assert callable(train) and issubclass(OtherRunError, ValueError)
    assert issubclass(TrainingError, RuntimeError)


def test_nothing_of_ours_goes_by_an_old_path() -> None:
    for folder in ("oltr_ext", "benchmarks", "findings", ".ci", "README.md", "CONTRIBUTING.md"):
        top = ROOT / folder
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.suffix not in (".py", ".md", ".sh", ".yaml") or path.name == "_moved.py":
                continue
            text = path.read_text(encoding="utf-8")
            assert [old for old in MOVED if re.search(rf"{re.escape(old)}\b", text)] == [], path


def test_they_go_with_the_next_release() -> None:
    assert __version__.startswith("0.1."), "delete oltr_ext/_moved.py and this file"


def test_a_pickled_head_finds_its_class() -> None:
    from oltr_ext.nn import LinearHead, heads

    assert pickle.loads(b"coltr_ext.nn.heads\nLinearHead\n.") is LinearHead
    with pytest.raises(AttributeError, match="has no attribute 'RoundHead'"):
        _ = heads.RoundHead
