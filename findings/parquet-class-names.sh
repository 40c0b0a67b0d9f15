#!/usr/bin/env bash
# datasets: Parquet files that each name their own classes are read with the names of the first; wrens become owls
#
# Versions: datasets 5.2.0 (2026), pyarrow 26.0.1.
# `to_parquet` keeps a column's class names in the file. `load_dataset` has them from the first file of the first split
# alone, and puts them on the numbers of all others: of a split whose classes are other ones (the strangers of an open
# set), or the same in another order, and of another file of one split, streamed too. The numbers stay, so that every
# image has a valid name, and the wrong one. Which ones come depends on the order in which the splits are given, and the
# cache does not know the order: it gives what the first of both calls gave. Each file alone, and `save_to_disk`, are
# right; `concatenate_datasets` of the same two sets refuses them. No warning.
# Seen (three sets of three images, each of a class of its own, under the names that it has once read again):
#> written: known owl tit wren, order wren owl tit, strangers ant bee wren
#> one by one: known owl tit wren, order wren owl tit, strangers ant bee wren
#> as splits: known owl tit wren, order owl tit wren, strangers owl tit wren
#> strangers first: strangers ant bee wren, known ant bee wren, order ant bee wren
#> the same after the splits above: known owl tit wren, order owl tit wren, strangers owl tit wren
#> one split of two files: owl tit wren owl tit wren, streamed owl tit wren owl tit wren
#> saved to disk: known owl tit wren, order wren owl tit, strangers ant bee wren
#> concatenated: ValueError
# Here: `oltr data from-arrow` takes a file's own names for its numbers (`oltr_ext/data/importing/arrow.py`).
pins="datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6"
set -euo pipefail
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv" && "$tmp/venv/bin/python" -m pip install -q $pins
export HF_HUB_OFFLINE=1 HF_HOME="$tmp/hf" HF_DATASETS_DISABLE_PROGRESS_BARS=1
"$tmp/venv/bin/python" -W ignore - "$tmp" >"$tmp/out" 2>"$tmp/err" <<'PYTHON' || { cat "$tmp/err"; exit 1; }
import sys

from datasets import ClassLabel, Dataset, DatasetDict, Features, concatenate_datasets, load_dataset, load_from_disk

root = sys.argv[1]
classes = {"known": ["owl", "tit", "wren"], "order": ["wren", "owl", "tit"], "strangers": ["ant", "bee", "wren"]}
files = {split: f"{root}/{split}.parquet" for split in classes}
sets = {}
for split, names in classes.items():
    sets[split] = Dataset.from_dict({"label": names}, features=Features({"label": ClassLabel(names=names)}))
    sets[split].to_parquet(files[split])


def names(rows):
    label = rows.features["label"]
    return " ".join(label.int2str(row["label"]) for row in rows)


def show(what, splits):
    print(f"{what}: " + ", ".join(f"{split} {names(rows)}" for split, rows in splits.items()))


def load(of, **options):
    return load_dataset("parquet", data_files=of, **options)


show("written", sets)
show("one by one", {split: load(file, split="train") for split, file in files.items()})
show("as splits", load(files))
turned = {split: files[split] for split in ("strangers", "known", "order")}
show("strangers first", load(turned, cache_dir=f"{root}/other"))
show("the same after the splits above", load(turned))
both = [files["known"], files["strangers"]]
streamed = names(load(both, split="train", streaming=True))
print(f"one split of two files: {names(load(both, split='train'))}, streamed {streamed}")
DatasetDict(sets).save_to_disk(f"{root}/disk")
show("saved to disk", load_from_disk(f"{root}/disk"))
try:
    print("concatenated: " + names(concatenate_datasets([sets["known"], sets["strangers"]])))
except ValueError as error:
    print(f"concatenated: {type(error).__name__}")
PYTHON
diff <(sed -n 's/^#> //p' "$0") "$tmp/out" && echo "as stated"
