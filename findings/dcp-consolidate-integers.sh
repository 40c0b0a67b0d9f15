#!/usr/bin/env bash
# One file of safetensors is not to be had of torch's checkpoint writer where a model has a BatchNorm
#
# Versions: torch 2.14.1, safetensors 0.8.0, numpy 2.4.6.
# torch.distributed.checkpoint's HuggingFaceStorageWriter writes a file a process, and with enable_consolidation=True makes
# one model file of them. It takes the width of each dtype from torch.finfo, so that any tensor of whole numbers or bools ends it:
# num_batches_tracked of a BatchNorm, a counter, a mask. The shards are written by then, in a folder where the reader does not
# look; the folder that was asked for has no model. Without consolidation, the same state dict is written and read back.
# Seen (the writer, what it is given, what comes of it):
#> shards, BatchNorm: saved, read back equal
#> one file, Linear: saved, read back equal
#> one file, BatchNorm: TypeError: torch.finfo() requires a floating point input type. Use torch.iinfo to handle 'torch.finfo'
# Here: runs write their one file themselves (`oltr_ext/engine/tensorfile.py`), for other reasons too
# (`oltr_ext/engine/README.md`); shared heads reload from shards (`python_tests/test_shared_files.py`).
pins="torch==2.14.1 safetensors==0.8.0 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
cat >"$tmp/save.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
for how, layer in (
    ("shards", torch.nn.BatchNorm1d(3)),
    ("one file", torch.nn.Linear(3, 2)),
    ("one file", torch.nn.BatchNorm1d(3)),
):
    name, state = type(layer).__name__.removesuffix("1d"), layer.state_dict()
    path = f"{sys.argv[1]}/{how} {name}"
    writer = HuggingFaceStorageWriter(
        path, save_distributed=True, enable_consolidation=how == "one file"
    )
    try:
        dcp.save(state, storage_writer=writer)
    except dcp.api.CheckpointException as error:
        ((cause, _),) = error.failures.values()
        print(f"{how}, {name}: {type(cause).__name__}: {cause}")
        continue
    read = {key: torch.zeros_like(value) for key, value in state.items()}
    dcp.load(read, storage_reader=HuggingFaceStorageReader(path))
    equal = all(torch.equal(read[key], value) for key, value in state.items())
    print(f"{how}, {name}: saved, read back {'equal' if equal else 'other'}")
dist.destroy_process_group()
PYTHON
GLOO_SOCKET_IFNAME=lo "$py" -W ignore "$tmp/save.py" "$tmp" >"$tmp/out" 2>"$tmp/err" || { cat "$tmp/err"; exit 1; }
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
