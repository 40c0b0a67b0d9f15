#!/usr/bin/env bash
# datasets: a class that is not among the named ones is an error, or quietly another class if it is a number
#
# Versions: datasets 5.2.0 (2026), pyarrow 26.0.1, Pillow 13.0.0.
# ClassLabel(names=...) turns names of classes into positions. A name it does not have is a ValueError; but before that
# it is tried as a number, and taken for that position among them. Where classes are numbered, as iNaturalist 2018's
# folders are, and 0 to 9 are held out as strangers, the images of class 3 are now of the fourth class, 13. Zeros
# in front ("003") do not help. So whoever wants strangers to stand out has them as known images with a wrong label, in
# training and in test. Only a number that is no position (95, of 90 names) is the error. Nothing warns.
# Seen (classes 10 to 99 are named; the class that an image of this folder, or a row of this text, ends up in):
#> folders: 3 is 13, 9 is 19, 10 is 10, 99 is 99
#> folders of three digits: 003 is 013, 009 is 019, 010 is 010, 099 is 099
#> JSON: 3 is 13, 9 is 19, 10 is 10, 99 is 99
#> Parquet: 3 is 13, 9 is 19, 10 is 10, 99 is 99
#> cast_column: 3 is 13, 9 is 19, 10 is 10, 99 is 99
#> folders, classes 0 to 89 named, 90 to 99 not: ValueError
#> folders of words, one of them not named: ValueError
# Here: `oltr data from-folder` and `from-arrow` take the text of a label for its name, whatever it is.
pins="datasets==5.2.0 pyarrow==26.0.1 pillow==13.0.0 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv" && "$tmp/venv/bin/python" -m pip install -q $pins
export HF_HUB_OFFLINE=1 HF_HOME="$tmp/hf" HF_DATASETS_DISABLE_PROGRESS_BARS=1
"$tmp/venv/bin/python" -W ignore - "$tmp" >"$tmp/out" 2>"$tmp/err" <<'PYTHON' || { cat "$tmp/err"; exit 1; }
import sys
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from datasets.exceptions import DatasetGenerationError
from PIL import Image as Pixels

root = Path(sys.argv[1])


def folders(texts, label):
    tree = root / "-".join(texts)
    for text in texts:
        (tree / text).mkdir(parents=True, exist_ok=True)
        Pixels.new("RGB", (8, 8)).save(tree / text / "0.png")
    features = Features({"image": Image(), "label": label})
    return load_dataset("imagefolder", data_dir=str(tree), features=features, split="train")["label"]


def files(kind):
    def rows(texts, label):
        file = str(root / f"rows.{kind}")
        getattr(Dataset.from_dict({"label": texts}), f"to_{kind}")(file)
        return load_dataset(kind, data_files=file, features=Features({"label": label}), split="train")["label"]

    return rows


def show(what, way, texts, names):
    try:
        ends = [names[index] for index in way(texts, ClassLabel(names=names))]
        print(f"{what}: " + ", ".join(f"{text} is {end}" for text, end in zip(texts, ends)))
    except (ValueError, DatasetGenerationError) as error:
        print(f"{what}: {type(error.__cause__ or error).__name__}")


rows, known = ["3", "9", "10", "99"], [str(i) for i in range(10, 100)]
show("folders", lambda t, label: [dict(zip(sorted(t), folders(t, label)))[x] for x in t], rows, known)
show("folders of three digits", folders, [f"{int(text):03}" for text in rows], [f"{int(name):03}" for name in known])
show("JSON", files("json"), rows, known)
show("Parquet", files("parquet"), rows, known)
show("cast_column", lambda t, label: Dataset.from_dict({"y": t}).cast_column("y", label)["y"], rows, known)
show("folders, classes 0 to 89 named, 90 to 99 not", folders, ["3", "95"], [str(i) for i in range(90)])
show("folders of words, one of them not named", folders, ["owl", "tit", "wren"], ["owl", "tit"])
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
