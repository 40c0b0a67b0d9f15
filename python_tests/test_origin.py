"""What a run started from: told by what stage 1 learned, and said where it cannot be told."""

from __future__ import annotations

import shutil

import pytest
import torch
from test_settle import METHODS, STAGE, settings, write
from tiny import stop_after

from oltr_ext.engine import checkpoint
from oltr_ext.engine.tensorfile import checksum
from oltr_ext.engine.train import OtherRunError, train

PRIOR = {**STAGE, "class_prior": 1.0}  # a stage 1 whose head expects something
ANEW = {"test_prior": "val", "open_set": {"score": "nearest_feature", "features": 20}}


def alone(data, **more):
    return settings(data, "plain", **{"stage1": PRIOR, "stage2": None, **more})


def both(data, **more):
    return settings(data, "plain", **{"stage1": PRIOR, **METHODS["memory"], **more})


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Data, a stage 1, and a run from it that was killed after its first epoch."""
    folder = tmp_path_factory.mktemp("begun")
    data = write(folder / "data")
    train(alone(data), folder / "one")
    train(both(data), folder / "whole", stage1=folder / "one")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        train(both(data), folder / "two", stage1=folder / "one")
    return folder


@pytest.fixture
def there(begun, tmp_path):
    for run in ("one", "two"):
        shutil.copytree(begun / run, tmp_path / run)
    return tmp_path


def edit(run, change):
    """Change the state in the header of each checkpoint of a run."""
    for file in run.glob("*.safetensors"):
        tensors, header = checkpoint.load(file)
        change(header["state"])
        checkpoint.save(file, tensors, header)


def weights(run):
    return checkpoint.under("model.", checkpoint.load(run / "model.safetensors")[0])


def same_model(a, b):
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_stage_1_that_is_settled_anew_is_the_same_stage_1(begun, there):
    data = begun / "data"
    before = weights(there / "one")
    train(alone(data, **ANEW), there / "one")
    after = weights(there / "one")
    changed = {k for k in after if not torch.equal(before[k], after[k])}
    settled = {f"head.{k}" for k in ("threshold", "score_index", "prior_share", "bank.rows")}
    assert settled <= changed and all(k.startswith(checkpoint.SETTLED) for k in changed)
    assert checkpoint.fingerprint(before) == checkpoint.fingerprint(after)
    said = []
    train(both(data), there / "two", stage1=there / "one", say=said.append)
    assert said[0].startswith("going on from stage 2, step 8 in")
    assert same_model(there / "two", begun / "whole")
    train(both(data), there / "new", stage1=there / "one")  # nor does it matter to a new run
    assert same_model(there / "new", begun / "whole")


def test_whatever_else_differs_is_another_stage_1(begun):
    old = weights(begun / "one")
    learned = [k for k in old if not k.startswith(checkpoint.SETTLED)]
    assert {"head.class_prior", "head.linear.weight", "head.linear.bias"} <= set(learned)
    for name in learned:
        other = {**old, name: old[name].flip(0)}
        assert checkpoint.fingerprint(other) != checkpoint.fingerprint(old), name


def test_the_way_that_stage_1_differs_is_told(begun, there):
    data = begun / "data"
    tensors, header = checkpoint.load(there / "one" / "model.safetensors")
    tensors["model.head.linear.bias"] += 1  # as another processor would round
    checkpoint.save(there / "one" / "model.safetensors", tensors, header)
    with pytest.raises(OtherRunError, match=r"did not start from .*one.*: other weights .*--fresh"):
        train(both(data), there / "two", stage1=there / "one")
    edit(there / "two", lambda state: state.update(origin=None))
    with pytest.raises(OtherRunError, match=r"did not start from .*one.*, but trained its own st"):
        train(both(data), there / "two", stage1=begun / "one")


def whole(run):
    """As it was written before what is settled was left out."""
    return f"{checksum('', weights(run)):08x}"


@pytest.mark.parametrize("settled_since", [False, True])
@pytest.mark.parametrize("version", ["none", "whole", "learned"])
def test_runs_of_earlier_versions_go_on(begun, there, version, settled_since):
    data, run = begun / "data", there / "two"
    old = {
        "none": lambda state: state.pop("origin"),
        "whole": lambda state: state.update(origin=whole(begun / "one")),
        "learned": lambda state: state.update(origin=state["origin"].removeprefix("learned ")),
    }
    edit(run, old[version])
    if settled_since:
        train(alone(data, **ANEW), there / "one")
    said = []
    train(both(data), run, stage1=there / "one", say=said.append)
    unsure = version == "none" or (version == "whole" and settled_since)
    assert said[0].startswith(f"{run} was begun by an earlier version: that it") == unsure
    assert same_model(run, begun / "whole")
    said.clear()  # from now on it is known
    train(both(data), run, stage1=there / "one", say=said.append)
    assert said[0] == f"{run} is trained already"


def test_what_can_be_checked_of_earlier_runs_is(begun, there):
    data, run = begun / "data", there / "two"
    edit(run, lambda state: state.pop("origin"))
    train(alone(data, seed=1), there / "odd")
    asked = r"odd.*seed = 1, and this one asks for 0; the same command .* stage2=null"
    with pytest.raises(ValueError, match=asked):
        train(both(data), run, stage1=there / "odd")
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        train(both(data), there / "own")
    edit(there / "own", lambda state: state.pop("origin"))  # in stage 1, which it trains itself
    with pytest.raises(OtherRunError, match="but trained its own stage 1"):
        train(both(data), there / "own", stage1=there / "one")


def test_a_run_that_went_on_without_stage_1_is_still_not_known(begun, there):
    edit(there / "two", lambda state: state.pop("origin"))
    train(both(begun / "data"), there / "two")
    said = []
    train(both(begun / "data"), there / "two", stage1=there / "one", say=said.append)
    assert "is not checked, but for configuration and data" in said[0]
