"""The words of the command: one name for one thing in every help, none without its line, none in
vain, and none that waits for torch."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from oltr_ext.cli import main
from oltr_ext.cli.parser import make_parser

ROOT = Path(__file__).resolve().parent.parent


def arguments(parser: argparse.ArgumentParser | None = None, name: str = "") -> Iterator[tuple]:
    """Of each command: its name and one of its arguments."""
    for action in (parser or make_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from arguments(sub, f"{name} {word}".strip())
        elif not isinstance(action, argparse._HelpAction | argparse._VersionAction):
            yield name, action


def takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0


def test_every_argument_has_a_line_and_a_name_for_its_value():
    for command, action in arguments():
        assert action.help, (command, action.dest)
        if takes_value(action) and not (action.choices and action.option_strings):
            words = [action.metavar] if isinstance(action.metavar, str) else action.metavar or [""]
            for word in words:
                assert re.fullmatch(r"[A-Z\[\]=|]+", word), (command, action.dest, action.metavar)


def test_one_thing_has_one_name_and_the_same_words():
    """A run, a configuration, images, a device: as any command says it, all do."""
    said = defaultdict(set)
    for _, action in arguments():
        if action.metavar in ("RUN", "CONFIG", "IMAGE", "KEY=VALUE") or action.dest == "device":
            flag = action.option_strings[0] if action.option_strings else action.metavar
            said[flag].add((str(action.metavar), action.help))
    assert said.keys() >= {"RUN", "CONFIG", "IMAGE", "--set", "--device"}
    assert {flag: words for flag, words in said.items() if len(words) > 1} == {}


def test_an_option_takes_values_of_one_name():
    """But for what two commands mean by one word."""
    names = defaultdict(lambda: defaultdict(set))
    for command, action in arguments():
        for flag in action.option_strings:
            names[flag][str(action.metavar)].add(command)
    several = {flag: dict(found) for flag, found in names.items() if len(found) > 1}
    files = {"export", "data pack"}
    assert several.pop("--out")["FILE"] == files
    assert several.pop("--set").keys() == {"KEY=VALUE", "ALPHA"}
    assert several.pop("--open").keys() == {"NAME", "SET"}
    assert several.pop("--name").keys() == {"NAME", "('NAME', 'IMAGE')"}
    assert several == {}


def test_what_needs_an_extra_names_it(capsys):
    """Each extra but those that a configuration or a name on the Hub asks for."""
    needs = {
        "serve": "web",
        "desk": "web",
        "export": "onnx",
        "data from-arrow": "arrow",
        "data make": "data",
    }
    for command, extra in needs.items():
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        assert f"pip install oltr_ext[{extra}]" in " ".join(capsys.readouterr().out.split())


def test_no_help_speaks_of_a_run_by_another_word():
    for command, action in arguments():
        text = f"{action.help} {action.metavar}"
        assert "checkpoint" not in text.lower(), (command, action.dest)


def test_the_pages_call_a_run_a_run():
    firsts = {}
    for command, action in arguments():
        if not action.option_strings:
            firsts.setdefault(command, str(action.metavar))
    of_runs = [command for command, first in firsts.items() if first == "RUN"]
    assert len(of_runs) == 8
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "oltr_ext").rglob("*.md")]
    pages += [ROOT / "oltr_ext" / "cli" / f"{name}.py" for name in ("parser", "commands")]
    for page in pages:
        for command, word in re.findall(
            r"oltr ([a-z-]+) ([A-Z]{3,})\b(?![/.])", page.read_text("utf-8")
        ):
            if command in firsts:
                assert word in firsts[command].split("|"), (page.name, command, word)


def test_what_needs_no_torch_imports_none(tmp_path, run_python):
    script = tmp_path / "oltr"  # as pip writes it
    script.write_text("import sys\nfrom oltr_ext.cli import main\nsys.exit(main())\n")
    for start in (["-m", "oltr_ext"], [str(script)]):
        for words, code in ((["--version"], 0), (["--help"], 0), (["predict", "x"], 2)):
            command = [sys.executable, "-X", "importtime", *start, *words]
            done = subprocess.run(command, capture_output=True, text=True)
            names = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
            assert done.returncode == code and "oltr_ext.cli.parser" in names
            assert "torch" not in names
    # what exported programs are promised of anybody else, and what the command has all the same
    run_python("import oltr_ext, torch\ntorch.ops.oltr_ext.nearest_centroid.default")
    run_python(
        "import sys; sys.argv = ['/usr/bin/oltr']\n"
        "import oltr_ext\nassert 'torch' not in sys.modules\n"
        "assert {'backend', 'ops', 'use_backend'} <= set(dir(oltr_ext))\n"
        "with oltr_ext.use_backend('reference'): assert oltr_ext.backend() == 'reference'\n"
        "import torch\ntorch.ops.oltr_ext.nearest_centroid.default\n"
        "oltr_ext.ops.nearest_centroid"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["predict", "x", "y", "--set-method", "class"], "share of --set, which is not there"),
        (["predict", "x", "y", "--by", "scores"], "to answer --observations, which are not there"),
        (["eval", "x", "--by", "embeddings"], "to answer --observations, which are not there"),
        (["predict", "x", "y", "--set", "0.1", "--nearest", "2"], "expected one of them; a set"),
        (
            ["predict", "x", "y", "--set", "data.root=/x"],
            r"--set: expected the share of images that may miss .*, in \(0, 1\), got data.root=/x",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_a_usage_error(words, told, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert re.search(told, capsys.readouterr().err.splitlines()[-1])
