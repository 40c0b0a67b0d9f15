#!/usr/bin/env bash
# One tree of class folders, other labels: torchvision and timm agree on 12 of 100 numbered classes, and merge other nested ones
#
# Versions: torchvision 0.29.1, timm 1.0.31, datasets 5.2.0 (2026), torch 2.14.1.
# All three read "a folder a class" and number the sorted names. torchvision and datasets sort them as text (0, 1, 10, 2),
# timm as a person would (0, 1, 2, 10) and without regard to case; neither says so. A classifier trained by one and
# judged by the other has chance accuracy on most classes, and no error. Where folders are nested, as iNaturalist 2018
# is by kingdom, torchvision's classes are the outermost folders and those of the others the innermost, wherever they
# are, so that two called "other" are one class.
# Seen (label by torchvision, timm, datasets):
#> folder 2 of 0 to 99: 12 2 12
#> folder 10 of 0 to 99: 2 10 2
#> folder 99 of 0 to 99: 99 99 99
#> torchvision and timm agree on 12 of 100
#> torchvision and datasets agree on 100 of 100
#> Zebra: 0 2 0
#> ant: 1 0 1
#> bee: 2 1 2
#> Aves/other: 0 0 0
#> Aves/wren: 0 2 2
#> Pisces/other: 1 0 0
#> Pisces/trout: 1 1 1
# Here: labels are numbers in lists beside `names.txt`, answers are names, and `--class-by` says which folder is the class;
# python_tests/test_import_folder.py::test_nested_folders.
pins="torch==2.14.1 torchvision==0.29.1 timm==1.0.31 datasets==5.2.0 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
py=${FINDINGS_VENV:-$tmp/venv}/bin/python
[ -n "${FINDINGS_VENV:-}" ] || { python3 -m venv "$tmp/venv" && "$py" -m pip install -q $pins; }
"$py" -c 'import importlib.metadata as m, sys
sys.exit([p for p in sys.argv[1:] if m.version(p.split("==")[0]).split("+")[0] != p.split("==")[1]] or 0)' $pins
export HF_HUB_OFFLINE=1 HF_HOME="$tmp/hf" HF_DATASETS_DISABLE_PROGRESS_BARS=1
"$py" -W ignore - "$tmp" >"$tmp/out" 2>"$tmp/err" <<'PYTHON' || { cat "$tmp/err"; exit 1; }
import sys
from pathlib import Path

import datasets
from PIL import Image
from timm.data import ImageDataset
from torchvision.datasets import ImageFolder


def labels(root, folders):
    """Of each folder, its label by torchvision, timm and datasets."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / folder / "0.png")
    of = [{str(Path(path).parent): y for path, y in ImageFolder(root).samples}]
    of.append({str(Path(path).parent): y for path, y in ImageDataset(str(root)).reader.samples})
    rows = datasets.load_dataset("imagefolder", data_dir=str(root), split="train")
    rows = rows.cast_column("image", datasets.Image(decode=False))
    of.append({str(Path(row["image"]["path"]).parent): row["label"] for row in rows})
    return {folder: [by[str(root / folder)] for by in of] for folder in folders}


tmp = Path(sys.argv[1])
numbered = labels(tmp / "numbered", [str(k) for k in range(100)])
for name in ("2", "10", "99"):
    print(f"folder {name} of 0 to 99:", *numbered[name])
for other, name in ((1, "timm"), (2, "datasets")):
    same = sum(label[0] == label[other] for label in numbered.values())
    print(f"torchvision and {name} agree on {same} of 100")
for case, label in labels(tmp / "case", ["Zebra", "ant", "bee"]).items():
    print(f"{case}:", *label)
leaves = ["Aves/other", "Aves/wren", "Pisces/other", "Pisces/trout"]
for nested, label in labels(tmp / "nested", leaves).items():
    print(f"{nested}:", *label)
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
