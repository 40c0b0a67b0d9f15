"""Validation images held out of the training list; classes and shot groups that come out empty."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import config, write_data

from oltr_ext.cli import main
from oltr_ext.config.loading import ConfigError, make_config
from oltr_ext.data import hold_out
from oltr_ext.engine.preflight import shot_note
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import train
from oltr_ext.metrics import fitting_bounds, shot_groups

COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def a_list(counts):
    labels = np.repeat(np.arange(len(counts)) * 3, counts)  # labels need not be without gaps
    return [f"{label}/{n}.png" for n, label in enumerate(labels)], labels


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.floats(0.01, 0.99), st.integers(0, 2**63 - 1))
def test_a_share_is_of_all_and_of_each_class(counts, share, seed):
    paths, labels = a_list(counts)
    held = hold_out(paths, labels, share, seed)
    given = np.bincount(labels[held], minlength=labels.max() + 1)[::3]
    counts = np.array(counts)
    wanted = np.where(counts > 1, share * counts, 0)
    assert (given <= np.maximum(counts - 1, 0)).all()
    assert (abs(given - np.minimum(wanted, counts - 1)) < 1 + 1e-9).all()
    capped = np.maximum(np.ceil(wanted) - (counts - 1), 0).sum()
    assert abs(held.sum() - wanted.sum()) <= 1 + capped
    assert (held == hold_out(paths, labels, share, seed)).all()


@settings(max_examples=30, deadline=None)
@given(COUNTS, st.integers(0, 9), st.randoms())
def test_one_of_each_class_that_has_two_in_any_order(counts, seed, random):
    paths, labels = a_list(counts)
    held = hold_out(paths, labels, "one_per_class", seed)
    taken = np.bincount(labels[held], minlength=labels.max() + 1)[::3]
    assert (taken == (np.array(counts) > 1)).all()
    order = list(range(len(paths)))
    random.shuffle(order)
    again = hold_out([paths[n] for n in order], labels[order], "one_per_class", seed)
    assert {paths[n] for n in np.flatnonzero(held)} == {
        paths[order[n]] for n in np.flatnonzero(again)
    }


def test_seeds_differ_and_shares_are_spread_over_small_classes():
    paths, labels = a_list([4] * 500)
    a, b = (hold_out(paths, labels, 0.1, seed) for seed in (0, 1))
    assert a.sum() == b.sum() == 200 and (a & b).sum() < 60
    assert len(np.unique(labels[a])) == 200  # no class gives two of its four
    assert 50 < (labels[a] < labels.max() / 2).sum() < 150


@pytest.mark.parametrize(
    ("paths", "labels", "how", "message"),
    [
        ([], [], 0.5, "got 0 and 0$"),
        (["a"], [0, 1], 0.5, "a label for each, got 1 and 2$"),
        (["a", "b"], [0], 0.5, "got 2 and 1$"),
        (["a", "b"], [0, 0], 1.5, r"a share in \(0, 1\) or one_per_class, got 1.5"),
        (["a", "b"], [0, 0], "one", "got 'one'"),
    ],
)
def test_what_holds_nothing_out_is_an_error(paths, labels, how, message):
    with pytest.raises(ValueError, match=f"hold_out: .*{message}"):
        hold_out(paths, labels, how, 0)


def test_an_image_that_is_listed_twice_goes_as_one():
    paths, labels = a_list([6, 5, 2])
    twice, both = [*paths, *paths], np.concatenate([labels, labels])
    for seed in range(5):
        held = hold_out(twice, both, 0.5, seed)
        assert (held[:13] == held[13:]).all() and 0 < held.sum() < 26


@pytest.fixture
def own(tmp_path):
    """The tiny set without a validation list; `command(*words)` runs on it."""
    write_data(tmp_path)
    values = config(tmp_path)
    values["data"]["val"] = 0.25
    (tmp_path / "val.txt").unlink()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    return tmp_path, values


def test_a_run_without_a_validation_list(own, tmp_path):
    folder, values = own
    said = []
    path = train(make_config({**values, "stage2": None}), tmp_path / "run", say=said.append)
    assert said[0].splitlines()[2] == (
        "validation: 8 of the 30 training images, of 4 of 4 classes, are held out (data.val: 0.25, "
        "data.val_seed: 0)"
    )
    splits = load_splits(make_config(values).data)
    assert len(splits.train) == len(splits.plain) == 22 == splits.train_counts.sum()
    assert not set(splits.train.paths) & set(splits.val.paths)
    assert splits.train.paths == splits.plain.paths and splits.train.bad is splits.plain.bad
    lines = [
        f"{path} {label}"
        for part in (splits.train, splits.val)
        for path, label in zip(part.paths, part.labels, strict=True)
    ]
    assert sorted(lines) == sorted((folder / "train.txt").read_text().splitlines())
    # another seed is another run
    values["data"]["val_seed"] = 1
    with pytest.raises(ValueError, match=r"data.val_seed = 0, and this one asks for 1"):
        train(make_config({**values, "stage2": None}), path.parent)
    values["data"]["val"] = "one_per_class"
    assert load_splits(make_config(values).data).val.labels.tolist() == [0, 1, 2, 3]


def test_nothing_to_hold_out_is_told(own):
    folder, values = own
    (folder / "train.txt").write_text("".join(f"train_{c}_0.png {c}\n" for c in range(4)))
    values["data"]["val"] = "one_per_class"
    with pytest.raises(ValueError, match=r"data.val: one_per_class holds none of the 4 training"):
        load_splits(make_config(values).data)
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    assert main(["data", "check", str(folder / "mine.yaml")]) == 1


@pytest.mark.parametrize("wrong", [0, 1, 1.5, -0.1, True])
def test_a_share_is_within_0_and_1(own, wrong):
    values = own[1]
    values["data"]["val"] = wrong
    with pytest.raises(ConfigError, match=r"data.val: .* or 'one_per_class', got"):
        make_config(values)


def test_a_missing_list_is_told_with_what_may_stand_for_it(own):
    values = own[1]
    del values["data"]["val"]
    with pytest.raises(ConfigError, match=r"data.val: this key is required: a list, or 0\.1 to"):
        make_config(values)


def test_what_is_held_out_and_what_is_lacking_is_noted(own, capsys):
    folder, _ = own
    lines = (folder / "test.txt").read_text().splitlines()
    (folder / "test.txt").write_text("\n".join(s for s in lines if s.split()[1] in "02"))
    (folder / "names.txt").write_text("ash\nbeech\ncherry\ndate\n")
    words = ["--set", f"data.class_names={folder}/names.txt", "--set", "data.shots=oltr"]
    command = ["data", "check", str(folder / "mine.yaml"), *words]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-5:] == [
        "4 classes with 11 to 2 training images",
        "note: val: 8 of the 30 images of train are held out (data.val: 0.25, data.val_seed: 0); "
        "train keeps 22",
        "note: test: 2 of 4 classes have no image: 1 (beech), 3 (date)",
        "note: data.shots: oltr makes every class few-shot, for they have 11 to 2 training images; "
        "data.shots: [6, 3] would make 1 many, 2 medium, 1 few",
        "whole",
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=60))
def test_bounds_that_fit_leave_no_group_empty(counts):
    bounds, sizes = fitting_bounds(counts), len(set(counts))
    if sizes == 1:
        assert bounds is None
        return
    groups = shot_groups(counts, bounds)
    assert [name for name, members in groups.items() if not members.any()] == (
        ["medium"] if sizes == 2 else []
    )


def test_a_note_on_shots_only_where_one_group_holds_all():
    assert fitting_bounds(np.arange(1, 91)) == (60, 31)
    assert shot_note([200, 50, 1], "oltr") is None and shot_note([9, 4], [4, 3]) is None
    assert shot_note([5, 5, 5], "oltr").endswith("for they have 5 to 5 training images")
    assert "would make 1 many, 0 medium, 2 few" in shot_note([500, 120, 120], "decoupling")
