"""Files written and read in pieces are those that `safetensors` writes and reads whole."""

from __future__ import annotations

import io

import pytest
import torch
from safetensors.torch import load as parse
from safetensors.torch import save as make

from oltr_ext.engine import checkpoint, pieces
from oltr_ext.engine.tensorfile import TensorFile, write

DTYPES = (
    "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 float8_e4m3fn complex64"
)


def _tensors():
    made = torch.Generator().manual_seed(0)
    found = {
        f"{name}.{n}": torch.randint(0, 2, (5, 3), generator=made).to(getattr(torch, name))
        for n, name in enumerate(DTYPES.split())
    }
    wide = torch.randn(7, 4, generator=made)
    more = {'ü "quoted" \\ \n': wide, "turned": wide.t(), "number": wide[0, 0], "row": wide[0]}
    return {**found, **more, "none": wide[:0], "narrow": wide[:, :0], "grid": wide.view(7, 1, 2, 2)}


def _written(tensors, text="{}"):
    file = io.BytesIO()
    write(file, tensors, text, "ours", lambda crc: f"{crc:08x} {text}")
    return file.getvalue()


@pytest.mark.parametrize("piece", [1, 24, 1 << 26])
def test_they_are_the_bytes_that_safetensors_writes(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(pieces, "PIECE", piece)
    tensors, text = _tensors(), '{"state": "ü\\n"}'
    data = _written(tensors, text)
    (tmp_path / "x").write_bytes(data)
    file = TensorFile(tmp_path / "x")
    whole = {name: value.contiguous().clone() for name, value in tensors.items()}
    assert data == make(whole, metadata=file.metadata) and file.metadata["ours"].endswith(text)
    assert file.keys() == tensors.keys() == parse(data).keys()
    for name, value in tensors.items():
        assert file[name].dtype == value.dtype == file.like[name].dtype
        assert torch.equal(file[name], value), name
        assert all(p.nbytes <= max(piece, 48) for p in file.pieces(name))
    assert torch.equal(torch.cat([*file.pieces("grid", 2, 6)]), tensors["grid"][2:6])
    under = file.named({"grid": "g"})
    assert list(under) == ["g"] and torch.equal(under["g"], tensors["grid"])


def test_rows_go_where_they_are_wanted(tmp_path, monkeypatch):
    """Into other dtypes and strides, from any row on."""
    monkeypatch.setattr(pieces, "PIECE", 32)
    tensors = _tensors()
    (tmp_path / "x").write_bytes(_written(tensors))
    file = TensorFile(tmp_path / "x")
    wanted = torch.zeros(2, 2, 1, 4, dtype=torch.float64).permute(3, 2, 0, 1)
    file.into("grid", wanted, 3)
    assert torch.equal(wanted.float(), tensors["grid"][3:7])
    with pytest.raises(RuntimeError):  # of another width
        file.into("grid", torch.empty(7, 3))


def test_to_ask_what_is_there_reads_nothing(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(_written(_tensors()))
    file = TensorFile(tmp_path / "x")
    monkeypatch.setattr(TensorFile, "pieces", None)
    assert "grid" in file and "none" in file and "other" not in file and len(file) == 19
    assert file.named({"grid": "g"}).like["g"].shape == (7, 1, 2, 2)


def test_a_file_that_is_replaced_while_it_is_read_is_read_on(tmp_path):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, {"x": torch.arange(9.0), "y": torch.zeros(1)}, {})
    tensors, _ = checkpoint.opened(path)
    part = checkpoint.under("x", tensors)
    checkpoint.save(path, {"w": torch.zeros(5), "x": torch.ones(2)}, {})
    del tensors  # a view keeps it open
    assert torch.equal(part[""], torch.arange(9.0))


def test_a_file_that_is_cut_off_while_it_is_read_says_so(tmp_path):
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, {"x": torch.arange(9.0)}, {})
    tensors, _ = checkpoint.opened(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"last\.safetensors was cut off while it was read"):
        tensors["x"]


def test_what_is_written_is_not_copied(monkeypatch):
    """Of what is on the CPU pieces are views."""
    monkeypatch.setattr(pieces, "PIECE", 1 << 10)
    bank, seen = torch.randn(1 << 12, 8), []
    for piece in pieces.pieces(bank):
        seen.append(piece.untyped_storage().data_ptr())
        assert piece.nbytes <= 1 << 10
    assert set(seen) == {bank.untyped_storage().data_ptr()} and len(seen) == 128
