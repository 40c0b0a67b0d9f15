"""`oltr data from-csv`: any columns, observations and groups on one side, what tables come with."""

from __future__ import annotations

import csv

import pytest
from photos import listed, put

from oltr_ext.cli import main
from oltr_ext.data.importing.outcome import table as text_of


def run(table, out, *more):
    return main(["data", "from-csv", str(table), "--out", str(out), *map(str, more)])


def write(path, head, rows, encoding="utf-8", **how):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, **how).writerows([head, *rows])
    return path


@pytest.fixture
def seen(tmp_path):
    """30 observations of 3 species, of 1 to 3 photos each, at 15 places."""
    rows, n = [], 0
    for obs in range(30):
        for photo in range(1 + obs % 3):
            put(tmp_path / "images" / f"{n}.png", n)
            rows.append((f"{n}.png", f"species {obs % 3}", f"o{obs}", f"place {obs // 2}", photo))
            n += 1
    head = ("filename", "species", "observationID", "place", "photo")
    return write(tmp_path / "seen.csv", head, rows), rows


def where(out):
    return {path: part for part in ("train", "val", "test") for path, _ in listed(out, part)}


def test_columns_of_plain_names(seen, tmp_path, capsys):
    """As an import's own table has them: a name beside its number, and observations."""
    _, rows = seen
    named = [(row[0], n % 3, row[1], row[2], "train") for n, row in enumerate(rows)]
    head = ("path", "label", "class", "Observation", "split")
    table = write(tmp_path / "images" / "plain.csv", head, named)
    assert run(table, tmp_path / "set") == 0
    said = capsys.readouterr().out
    assert "path is path, label is class, observation is Observation" in said
    assert "plain.csv: split is not used: --split-column split" in said
    assert "\n30 observations\n" in said and "PROBLEM" not in said
    with pytest.raises(SystemExit):
        main(["data", "from-csv", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for what in ("path, file, ...", "label, class, ...", "observation, if there is one"):
        assert f"-column NAME default: {what} --" in told
    part = where(tmp_path / "set")
    assert len({(row[2], part[row[0]]) for row in rows}) == 30


def test_observations_and_groups_stay_together(seen, tmp_path, capsys):
    table, rows = seen
    for column, n, count in (("observation", 2, 30), ("group", 3, 15)):
        out = tmp_path / column
        name = ("observationID", "place")[n - 2]
        words = ("--root", tmp_path / "images", f"--{column}-column", name)
        assert run(table, out, *words) == 0
        said = capsys.readouterr().out
        assert f"\n{count} {column}s\n" in said and "PROBLEM" not in said
        assert f"seen.csv: path is filename, label is species, {column} is {name}" in said
        part = where(out)
        assert len(part) == len(rows) and set(part.values()) == {"train", "val", "test"}
        kept = {(row[n], part[row[0]]) for row in rows}
        assert len(kept) == count
    assert run(table, tmp_path / "alone", "--root", tmp_path / "images") == 0
    part = where(tmp_path / "alone")
    assert len({(row[2], part[row[0]]) for row in rows}) > 30  # else the above shows nothing
    with (tmp_path / "observation" / "images.csv").open(newline="") as file:
        found = {row["path"]: row["observation"] for row in csv.DictReader(file)}
    assert found == {row[0]: row[2] for row in rows}


def test_a_carriage_return_ends_no_row():
    rows = [["a\rb", 1], ["c", 2.5]]
    assert text_of(["path", "n"], rows) == 'path,n\n"a\rb",1\nc,2.5\n'


def test_tables_as_they_come(tmp_path, capsys):
    for n in range(6):
        put(tmp_path / "sub dir" / f"a, {n}.png", n)
    rows = [
        (f"sub dir/a, {n}.png", ("Fox \nred", "Fox red", " Owl, barn")[n % 3]) for n in range(6)
    ]
    same = None
    for n, (encoding, how) in enumerate(
        (
            ("utf-8", {}),
            ("utf-8-sig", {}),
            ("utf-8-sig", {"delimiter": ";", "quoting": csv.QUOTE_ALL}),
            ("utf-8", {"delimiter": "\t", "lineterminator": "\n"}),
        )
    ):
        table = write(tmp_path / f"{n}.csv", (" Path", "CLASS"), rows, encoding, **how)
        assert run(table, tmp_path / f"set{n}") == 0
        said = capsys.readouterr().out
        assert "one class, spelt in 2 ways that look alike: Fox red" in said
        assert (tmp_path / f"set{n}" / "names.txt").read_text() == "Fox red\nOwl, barn\n"
        lists = [listed(tmp_path / f"set{n}", part) for part in ("train", "val", "test")]
        assert same in (None, lists)
        same = lists


def test_rows_that_say_too_little(tmp_path, capsys):
    for n in range(5):
        put(tmp_path / f"{n}.png", n)
    lines = ["file,label,note", *(f"{n}.png,a,x" for n in range(4)), "4.png,,x", ",a,x", "",
             "0.png,a", "0.png,b,x,y", "gone.png,a,x", ".,a,x", "0.png,a,again"]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert run(tmp_path / "t.csv", tmp_path / "set") == 0
    said = capsys.readouterr().out
    for line in (
        "4 images of 1 known class",
        "left out, without a class: 1 (4.png)",
        "left out, unreadable: 2 (gone.png: No such file or directory, .: Is a directory)",
        "left out, copies of others of their class: 1 (0.png = 0.png)",
        "passed over, rows without a path: 1 (line 7)",
        "passed over, rows of fewer columns than the head: 1 (line 9)",
        "passed over, rows of more columns than the head: 1 (line 10)",
    ):
        assert line in said, line


def test_splits_and_suffixes_and_backslashes(tmp_path, capsys):
    rows = []
    for n in range(12):
        put(tmp_path / "im" / f"{n}.png", n)
        rows.append((f"im\\{n}", "ab"[n % 2], ("train", "TRAIN", "valid", "")[n % 4]))
    table = write(tmp_path / "t.csv", ("image", "label", "set"), rows)
    assert run(table, tmp_path / "set", "--suffix", ".png", "--split-column", "set") == 0
    part = where(tmp_path / "set")
    assert {part[f"im/{n}.png"] for n in (2, 6, 10)} == {"val"}
    assert {part[f"im/{n}.png"] for n in (0, 1, 4, 5, 8, 9)} <= {"train", "test"}
    bad = write(tmp_path / "u.csv", ("image", "label", "set"), [("im/0.png", "a", "later")])
    capsys.readouterr()
    assert run(bad, tmp_path / "bad", "--split-column", "set") == 1
    assert "u.csv:2: expected a split of train, val or test, got 'later'" in capsys.readouterr().err


def test_columns_that_are_not_there(tmp_path, capsys):
    put(tmp_path / "a.png", 0)
    table = write(tmp_path / "t.csv", ("photo", "what", "what"), [("a.png", "x", "y")])
    for words, error in (
        ((), "no column one of path, file, filename, file_name, filepath, file_path, image, "
             "image_path; there are photo, what, what: say which by --path-column"),
        (("--path-column", "photo", "--label-column", "kind"),
         "no column kind; there are photo, what, what: say which by --label-column"),
        (("--path-column", "photo", "--label-column", "what"), "column what is there 2 times"),
    ):  # fmt: skip
        assert run(table, tmp_path / "set", *words) == 1
        assert error in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "set").exists()
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff.png,a\n")
    assert run(table, tmp_path / "set") == 1
    assert "is not UTF-8 text" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text('path,label\n"a.png,a\n')
    assert run(table, tmp_path / "set") == 1
    assert "t.csv:2: unexpected end of data" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("")
    assert run(table, tmp_path / "set") == 1
    assert "there are none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "taken", "others"),
    [
        (("label", "species"), "species", "label is"),
        (("class", "class_name"), "class_name", "class is"),
        (("category", "scientific_name"), "scientific_name", "category is"),
        (("category", "label"), "label", "category is"),
        (("label", "class", "species"), "species", "class, label are"),
        (("label", "name"), "label", "name is"),
    ],
)
def test_of_several_labels_the_one_that_tells_names(tmp_path, capsys, head, taken, others):
    """A number, or a word that all rows share, says less; one that no two share is no class."""
    images = [f"photo {n}" for n in range(8)]
    values = {"label": "01" * 4, "class": "01" * 4, "category": ["bird"] * 8, "name": images}
    rows = []
    for n in range(8):
        put(tmp_path / f"{n}.png", n)
        rows.append((f"{n}.png", *(values.get(each, ("fox", "owl") * 4)[n] for each in head)))
    assert run(write(tmp_path / "t.csv", ("path", *head), rows), tmp_path / "set") == 0
    said = capsys.readouterr().out
    assert f"label is {taken}\n" in said
    assert f"t.csv: {others} not used: --label-column " in said


def test_less_than_none_is_no_class(tmp_path, capsys):
    rows = []
    for n in range(9):
        put(tmp_path / f"{n}.png", n)
        rows.append((f"{n}.png", n % 3 - 1))
    assert run(write(tmp_path / "t.csv", ("path", "label"), rows), tmp_path / "set") == 0
    assert (tmp_path / "set" / "names.txt").read_text() == "0\n1\n"
    assert "left out, without a class: 3 (0.png, 3.png, 6.png)" in capsys.readouterr().out


def test_a_column_that_was_mistyped_and_a_class_called_unknown(tmp_path, capsys):
    rows = []
    for n in range(9):
        put(tmp_path / f"{n}.png", n)
        rows.append((f"{n}.png", ("unknown", "owl", "fox")[n % 3], ""))
    table = write(tmp_path / "t.csv", ("path", "kind", "other"), rows)
    assert run(table, tmp_path / "set", "--label-column", "other") == 1
    assert "label is other" in capsys.readouterr().err
    assert run(table, tmp_path / "set", "--label-column", "kind") == 0
    said = capsys.readouterr().out
    assert "\nclasses: fox, owl, unknown\n" in said and "--open unknown holds it out" in said
    words = ("--label-column", "kind", "--open", "unknown")
    assert run(table, tmp_path / "open", *words) == 0
    assert "holds it out" not in capsys.readouterr().out
