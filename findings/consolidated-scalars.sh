#!/usr/bin/env bash
# torch's safetensors consolidation sets every scalar to zero: CLIP's logit_scale, a temperature, a cosine head's scale
#
# Versions: torch 2.14.1, safetensors 0.8.0.
# HuggingFaceStorageWriter writes sharded checkpoints; with enable_consolidation=True it joins the shards into whole files that
# others load. A tensor without dimensions has its place there, shape and dtype, and its bytes are never copied: the value
# is 0. The shards beside it are right, and so is the same number as a tensor of one element. Learned scales are such
# tensors, CLIP's `logit_scale` among them: cosines are multiplied by exp(0) = 1 instead of 100, so that answers stay the
# same, every confidence is near 1 / C, and every threshold on one is wrong. No error and no warning, on writing or on
# reading, from one process or many. (A whole number, as batch norm counts with, is an error instead.)
# Seen (a cosine classifier of 100 classes as it was, and loaded from the checkpoint):
#> as it was: logit_scale 4.605, as a vector 4.605, accuracy 1.000, mean confidence 1.000
#> without: logit_scale 4.605, as a vector 4.605, accuracy 1.000, mean confidence 1.000
#> the shards: logit_scale 4.605, as a vector 4.605, accuracy 1.000, mean confidence 1.000
#> consolidated: logit_scale 0.000, as a vector 4.605, accuracy 1.000, mean confidence 0.021
#> consolidated, by HuggingFaceStorageReader: logit_scale 0.000, as a vector 4.605, accuracy 1.000, mean confidence 0.021
# Here: torch joins no files of ours: those for the Hub are written whole by safetensors;
# python_tests/test_hub.py::test_what_is_saved_is_loaded_elsewhere.
pins="torch==2.14.1 safetensors==0.8.0 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
"$py" -W ignore - "$tmp" >"$tmp/out" 2>"$tmp/err" <<'PYTHON' || { cat "$tmp/err"; exit 1; }
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from safetensors.torch import load_file

torch.manual_seed(0)
centre = F.normalize(torch.randn(100, 64))
label = torch.arange(1000) % 100
x = F.normalize(centre[label] + 0.1 * torch.randn(1000, 64))
scale = torch.tensor(100.0).log()
saved = {"weight": centre, "logit_scale": scale, "as_vector": scale.clone().reshape(1)}


def tell(name, state):
    logits = state["logit_scale"].exp() * x @ state["weight"].T
    confidence, answer = logits.softmax(1).max(1)
    right = (answer == label).float().mean()
    print(
        f"{name}: logit_scale {state['logit_scale']:.3f}, as a vector {state['as_vector'].item():.3f}, "
        f"accuracy {right:.3f}, mean confidence {confidence.mean():.3f}"
    )


tell("as it was", saved)
for consolidated in (False, True):
    folder = Path(sys.argv[1]) / str(consolidated)
    writer = dcp.HuggingFaceStorageWriter(
        str(folder), save_distributed=True, enable_consolidation=consolidated
    )
    dcp.save(saved, storage_writer=writer, no_dist=True)
    if consolidated:
        tell("the shards", load_file(next(folder.glob("sharded/*.safetensors"))))
    tell("consolidated" if consolidated else "without", load_file(next(folder.glob("*.safetensors"))))
loaded = {name: torch.ones_like(value) for name, value in saved.items()}
dcp.load(loaded, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
tell("consolidated, by HuggingFaceStorageReader", loaded)
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
