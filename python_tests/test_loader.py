"""Loader processes: what they hand over, and where there is too little shared memory for it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections import namedtuple
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from tiny import config, write_data

from oltr_ext.config.loading import make_config
from oltr_ext.engine import splits
from oltr_ext.engine.splits import load_splits, make_loader
from oltr_ext.engine.train import train

forked = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="a patch does not reach the processes"
)


@pytest.fixture
def no_room(monkeypatch, tmp_path):
    """Shared memory as in a container that has used its own up."""
    free = namedtuple("usage", "total used free")
    monkeypatch.setattr(splits, "SHARED", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free(0, 0, 0))

    def crash(_):
        os._exit(1)  # as by SIGBUS

    monkeypatch.setitem(ForkingPickler._extra_reducers, torch.Tensor, crash)


@pytest.fixture
def lists(tmp_path):
    write_data(tmp_path / "data")
    return make_config(config(tmp_path / "data"))


def batches(images, workers):
    keys = [np.arange(n, n + 8) for n in (0, 8, 16)]
    return [(x, y) for x, y in make_loader(images, keys, workers)]


def test_processes_hand_over_bytes_and_change_nothing(lists):
    parts = load_splits(lists.data)
    alone, ahead = batches(parts.train, 0), batches(parts.train, 2)
    for (x, y), (other, labels) in zip(alone, ahead, strict=True):
        assert x.dtype == torch.float32 and torch.equal(x, other) and torch.equal(y, labels)
    pixels, _ = parts.train.__getitems__(np.arange(8))
    assert pixels.dtype == torch.uint8 and parts.problems() == []


@forked
def test_without_room_in_shared_memory_batches_come_through_pipes(lists, no_room):
    parts = load_splits(lists.data)
    for (x, y), (other, labels) in zip(
        batches(parts.train, 2), batches(load_splits(lists.data).train, 0), strict=True
    ):
        assert torch.equal(x, other) and torch.equal(y, labels)
    batches(parts.plain, 1)
    (line,) = parts.problems()
    assert "has no room for the batches that data.workers processes fetch ahead" in line


@forked
def test_a_run_without_room_says_so_once(lists, no_room, tmp_path):
    data = lists.data.model_copy(update={"workers": 1})
    said = []
    train(
        lists.model_copy(update={"data": data, "stage2": None}), tmp_path / "run", say=said.append
    )
    assert sum("data.workers" in line for line in said) == 1


def test_more_processes_than_processors_are_not_started(lists, recwarn):
    parts = load_splits(lists.data)
    found = batches(parts.train, splits.processors() + 3)
    assert not [str(each.message) for each in recwarn if "DataLoader" in str(each.message)]
    for (x, _), (other, _) in zip(found, batches(parts.train, 0), strict=True):
        assert torch.equal(x, other)
