"""A bank in a file: what is read, in how much memory, and what is said of a file that is none."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from oltr_ext import ops
from oltr_ext.ops import StreamedBank


@pytest.fixture(params=["mapped", "copied"])
def way(request, monkeypatch):
    """How a file is read: as memory under a lease, or by a thread."""
    if request.param == "copied":
        monkeypatch.setattr("oltr_ext.ops.bank.leased", lambda file: nullcontext())
    return request.param


def _rows(bank):
    with bank.blocks() as blocks:
        return torch.cat([torch.empty(0, bank.shape[1]), *(b.float().clone() for _, b in blocks)])


def _header(path, header, data=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _matrix(shape, kind="F32", offsets=None):
    return {"m": {"dtype": kind, "shape": shape, "data_offsets": offsets or [0, 24]}}


@pytest.mark.parametrize("block", [1, 2, 5, 7, None])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy(dtype, block, way, tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 3)).astype(dtype)
    np.save(tmp_path / "m.npy", values)
    bank = StreamedBank(tmp_path / "m.npy", block=block)
    assert (tuple(bank.shape), len(bank), bank.nbytes) == ((7, 3), 7, values.nbytes)
    assert bank.dtype == torch.from_numpy(values).dtype
    assert torch.equal(_rows(bank), torch.from_numpy(values).float())
    assert torch.equal(_rows(bank), _rows(bank))  # again


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_npy(version, tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with (tmp_path / "m.npy").open("wb") as file:
        np.lib.format.write_array(file, values, version=version)
    assert torch.equal(_rows(StreamedBank(tmp_path / "m.npy")), torch.from_numpy(values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_safetensors(dtype, way, tmp_path):
    tensors = {"odd": torch.ones(3, dtype=torch.uint8), "m": torch.randn(5, 4).to(dtype)}
    file = tmp_path / "m.safetensors"
    save_file(tensors, str(file))
    for bank in (StreamedBank(file), StreamedBank(str(file), "m", block=2)):
        assert bank.dtype == dtype
        assert torch.equal(_rows(bank), tensors["m"].float())
        assert str(bank).startswith(f"StreamedBank({file}")
        assert torch.equal(bank.at(torch.tensor([4, 0, 4])), tensors["m"][[4, 0, 4]])


def test_a_tensor_that_lies_at_an_odd_place(way, tmp_path):
    values = torch.randn(2, 3)
    data = b"x" + values.numpy().tobytes()
    file = _header(tmp_path / "m.safetensors", _matrix([2, 3], offsets=[1, 25]), data)
    assert torch.equal(_rows(StreamedBank(file)), values)


def _npy(path, values, **options):
    np.save(path, values)
    return path


def _cut(path, values, count):
    np.save(path, values)
    os.truncate(path, os.path.getsize(path) - count)
    return path


SMALL = np.zeros((2, 3), np.float32)
WRONG = {
    "big-endian": (lambda f: _npy(f, SMALL.astype(">f4")), "little-endian.*>f4"),
    "whole numbers": (lambda f: _npy(f, SMALL.astype(np.int64)), "<i8"),
    "records": (lambda f: _npy(f, np.zeros(2, [("a", "f4")])), "little-endian floats"),
    "columns": (lambda f: _npy(f, np.asfortranarray(SMALL)), "C order.*Fortran"),
    "vector": (lambda f: _npy(f, SMALL[0]), r"matrix \(C, D\), got shape \(3,\)"),
    "cut off": (lambda f: _cut(f, SMALL, 1), "expected 152 bytes for 2 x 3.*got 151: it is trunc"),
    "cut in the header": (lambda f: _cut(f, SMALL, 120), "header of a .npy file"),
    "cut at once": (lambda f: _cut(f, SMALL, 145), "header of a .npy file"),
    "empty": (lambda f: (f.write_bytes(b"") and f) or f, "another kind"),
    "text": (lambda f: (f.write_text("1,2,3\n"), f)[1], "another kind"),
    "long header": (
        lambda f: (f.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"), f)[1],
        "truncated or damaged",
    ),
    "no header": (lambda f: (f.write_bytes(struct.pack("<Q", 2) + b"{]"), f)[1], "safetensors hea"),
    "list": (lambda f: (f.write_bytes(struct.pack("<Q", 3) + b"{1}"), f)[1], "safetensors header"),
    "half the tensor": (lambda f: _header(f, _matrix([2, 3]), b"x" * 23), "it is truncated"),
    "wrong size": (lambda f: _header(f, _matrix([2, 4]), b"x" * 24), r"32 bytes for \(2, 4\)"),
    "backwards": (
        lambda f: _header(f, _matrix([2, 3], offsets=[30, 54][::-1])),
        r"offsets \(54, 30\)",
    ),
    "integers": (lambda f: _header(f, _matrix([2, 3], "I32"), b"x" * 24), "F64, F32.*got I32"),
    "bad offsets": (lambda f: _header(f, _matrix([2, 3], offsets=["a", "b"]), b"x"), "offsets"),
    "minus": (lambda f: _header(f, _matrix([-2, -3]), b"x" * 24), r"\(C, D\), got shape"),
    "nothing": (lambda f: _header(f, {}), "expected a key, for it holds 0 matrices"),
}


@pytest.mark.parametrize("what", WRONG)
def test_no_bank(what, tmp_path):
    make, message = WRONG[what]
    file = make(tmp_path / "m.npy")
    with pytest.raises(ValueError, match=message) as error:
        StreamedBank(file)
    assert str(file) in str(error.value)


def test_no_such_file_or_key(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.npy"):
        StreamedBank(tmp_path / "gone.npy")
    with pytest.raises(FileNotFoundError, match="no file"):
        StreamedBank(tmp_path)
    save_file({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, str(tmp_path / "m.safetensors"))
    with pytest.raises(ValueError, match="holds 2 matrices: a, b"):
        StreamedBank(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="expected a tensor 'c', got a, b"):
        StreamedBank(tmp_path / "m.safetensors", "c")
    np.save(tmp_path / "m.npy", SMALL)
    with pytest.raises(ValueError, match="holds one array, got 'a'"):
        StreamedBank(tmp_path / "m.npy", "a")


def _cut_off_within_a_pass(file):
    """By another process, which a lease makes wait; what the pass says."""
    np.save(file, np.ones((100, 1024), np.float32))
    bank = StreamedBank(file, block=1)
    code = f"import os; print(1, flush=True); os.truncate({str(file)!r}, 1000)"
    with pytest.raises(ValueError, match=r"m\.npy") as error, bank.blocks() as blocks:
        next(blocks)
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert other.stdout.read(1) == b"1"
        time.sleep(0.3)  # it is about to
        list(blocks)
    assert other.wait(30) == 0 and file.stat().st_size == 1000
    with pytest.raises(ValueError, match="as it was opened, of 409,728 bytes, got one of 1,000"):
        ops.nearest_centroid(torch.ones(1, 1024), bank)
    return str(error.value)


def test_a_file_that_is_cut_off_while_it_is_read(way, tmp_path):
    said = _cut_off_within_a_pass(tmp_path / "m.npy")
    assert ("someone who writes to it" if way == "mapped" else "cut off while in use") in said
    assert not [t for t in threading.enumerate() if t.name.startswith("oltr-bank")]


def test_a_file_that_is_written_to_or_replaced(way, tmp_path):
    file = tmp_path / "m.npy"
    np.save(file, np.ones((4, 2), np.float32))
    bank = StreamedBank(file)
    np.save(tmp_path / "other.npy", np.zeros((4, 2), np.float32))
    os.replace(tmp_path / "other.npy", file)  # the one that was opened is still there
    assert torch.equal(_rows(bank), torch.ones(4, 2))
    bank = StreamedBank(file)
    with file.open("r+b") as opened:
        opened.seek(-4, os.SEEK_END)
        opened.write(b"\0\0\x80\x3f")
    os.utime(file, ns=(1, 1))
    with pytest.raises(ValueError, match="written to since: open it anew"):
        _rows(bank)


def test_a_pass_that_is_left_early_ends_its_thread(tmp_path):
    np.save(tmp_path / "m.npy", np.ones((50, 2), np.float32))
    bank = StreamedBank(tmp_path / "m.npy", block=1)
    with pytest.raises(KeyboardInterrupt), bank.blocks() as blocks:
        next(blocks)
        raise KeyboardInterrupt
    assert not [t for t in threading.enumerate() if t.name.startswith("oltr-bank")]


def test_its_file_is_closed_with_it(way, tmp_path):
    np.save(tmp_path / "m.npy", SMALL)
    bank = StreamedBank(tmp_path / "m.npy")
    opened, part = bank._file, bank.only(torch.tensor([1]))
    del bank
    assert len(_rows(part)) == 1
    del part
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened)


def test_it_cannot_be_copied(tmp_path):
    import copy

    np.save(tmp_path / "m.npy", SMALL)
    with pytest.raises(TypeError, match="open its file anew"):
        copy.deepcopy(StreamedBank(tmp_path / "m.npy"))


COPIED = """
from contextlib import nullcontext
ops.bank.leased = lambda file: nullcontext()
"""
LARGER = """
import resource, sys
import torch
from oltr_ext import ops

bank = ops.StreamedBank(sys.argv[1], "m")
x = torch.ones(4, bank.shape[1])
ops.nearest_centroid(x, torch.ones(64, bank.shape[1]))  # threads and scratch are there
lines = open("/proc/self/status").read().splitlines()
used = 1024 * int(next(line for line in lines if line.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + (160 << 20),) * 2)
x.requires_grad_()
gate = torch.zeros(len(bank)), torch.zeros(256, 256), torch.zeros(256)
keys = ops.StreamedBank(sys.argv[1], "m")
v = ops.meta_embedding(x, bank, keys, *gate)
loss = ops.cosine_cross_entropy(v, bank, torch.arange(4))
loss.backward()
assert ops.nearest_centroid(torch.full((1, 256), 1.0), bank).index.item() == 190_000
try:
    torch.empty(bank.shape)
except RuntimeError:
    print("larger than memory")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_larger_than_memory(way, tmp_path, run_python):
    shape, width = (200_000, 256), 256  # 205 MB, in 160 MB
    header = {"m": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * 200_000 * width]}}
    file = _header(tmp_path / "m.safetensors", header)
    with file.open("r+b") as opened:  # a file of holes
        begin = opened.seek(0, os.SEEK_END)
        opened.truncate(begin + 4 * 200_000 * width)
        opened.seek(begin + 4 * 190_000 * width)
        opened.write(np.ones(width, np.float32).tobytes())
    code = LARGER.replace("sys.argv[1]", repr(str(file)))
    if way == "copied":
        code = code.replace("bank = ", COPIED + "bank = ", 1)
    assert "larger than memory" in run_python(code)


def test_no_bank_of_a_tensor():
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=f"StreamedBank: expected float32, .*, got {dtype}"):
            StreamedBank(torch.zeros(2, 3, dtype=dtype))


@pytest.mark.parametrize("shape", [(1, 1), ()])
def test_rows_of_what_is_no_vector(shape, tmp_path):
    np.save(tmp_path / "m.npy", SMALL)
    for bank in (StreamedBank(tmp_path / "m.npy"), StreamedBank(torch.zeros(2, 3))):
        with pytest.raises(ValueError, match=r"at: expected classes \(K,\), got shape \("):
            bank.at(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["file", "tensor", "only"])
@pytest.mark.parametrize("wrong", [-1, 4])
def test_rows_of_no_class(kind, wrong, tmp_path):
    values = torch.randn(4, 3)
    save_file({"a": values, "b": torch.ones(4, 3)}, tmp_path / "m.safetensors")
    bank = StreamedBank(tmp_path / "m.safetensors", "a")
    if kind == "tensor":
        bank = StreamedBank(values)
    elif kind == "only":
        save_file({"a": torch.cat([torch.ones(2, 3), values])}, tmp_path / "m.safetensors")
        bank = StreamedBank(tmp_path / "m.safetensors", "a").only(torch.arange(2, 6))
    assert torch.equal(bank.at(torch.tensor([3, 0])), values[[3, 0]])
    with pytest.raises(ValueError, match=rf"at: expected classes in \[0, 4\), got {min(wrong, 1)}"):
        bank.at(torch.tensor([1, wrong]))
