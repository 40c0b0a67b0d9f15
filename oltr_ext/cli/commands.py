"""What each command does with its arguments. Imports wait until a command needs them: torch alone
takes seconds."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Literal

from oltr_ext._words import counted
from oltr_ext.cli.saying import say, tell
from oltr_ext.config.methods import METHODS

if TYPE_CHECKING:
    from oltr_ext.serve.trained import Trained


def run_demo(args: argparse.Namespace) -> int:
    from oltr_ext.cli.demo import demo

    demo(
        args.out,
        methods=args.methods,
        seed=args.seed,
        fresh=args.fresh,
        overrides=args.set,
        say=say,
    )
    return 0


def run_train(args: argparse.Namespace) -> int:
    from oltr_ext.config.loading import load_config
    from oltr_ext.engine import distributed
    from oltr_ext.engine.choose import configured
    from oltr_ext.engine.train import train

    with distributed.joined(_patience(args)):
        name = "_".join(filter(None, (Path(args.config).stem, args.method)))
        out = args.out or Path("runs") / name
        config, told = configured(
            lambda method: load_config(args.config, args.set, method=method),
            out,
            method=args.method or "auto",
            resume=not args.fresh,
            overrides=args.set,
            say=tell,
        )
        path = train(config, out, resume=not args.fresh, stage1=args.stage1, say=told)
        if distributed.lead():
            print(f"model  {path}")
    return 0


def _patience(args: argparse.Namespace) -> float:
    """Seconds to wait for other processes. What is wrong with the configuration is said later."""
    from oltr_ext.config.loading import load_config
    from oltr_ext.config.schema import Distributed

    try:
        method = args.method or "auto"
        return load_config(args.config, args.set, method=method).distributed.timeout
    except (OSError, ValueError):
        return Distributed().timeout


def run_config(args: argparse.Namespace) -> int:
    from oltr_ext.config.loading import as_yaml, load_config

    print(as_yaml(load_config(args.config, args.set, method=args.method or "auto")), end="")
    return 0


def run_eval(args: argparse.Namespace) -> int:
    by = _by(args)

    from oltr_ext.serve.adapters import write_openood
    from oltr_ext.serve.assess import ALPHA, REPORT, check_free, compare, report
    from oltr_ext.serve.costs import price
    from oltr_ext.serve.observations import judge_observations, read_observations
    from oltr_ext.serve.tables import observation_table, open_set_table, set_table, table
    from oltr_ext.serve.trained import load_trained

    trained = [
        load_trained(path, device=args.device, overrides=args.set, stream=args.stream)
        for path in args.checkpoints
    ]
    folders = [each.path.parent for each in trained]
    page = _report_folder(args, folders) / REPORT
    if not args.json:
        check_free(page)  # before it takes its time
    names = [
        folder.resolve().name or path.stem
        for folder, path in zip(folders, args.checkpoints, strict=True)
    ]
    if len(set(names)) < len(names):
        names = [str(path) for path in args.checkpoints]
    results = compare(trained, args.name or names, test_prior=args.test_prior)
    observed = None if args.observations is None else read_observations(args.observations)
    for each, part in zip(results, _parts([each.name for each in results]), strict=True):
        if observed is not None:
            each.summary["observations"] = judge_observations(each, observed, by=by)
        if args.costs is not None:
            each.notes.append(price(each, args.costs))
        for line in each.notes:
            print(f"{each.name}: {line}", file=sys.stderr)
        if args.openood is not None:
            write_openood(each, args.openood / part if len(results) > 1 else args.openood)
    for line in dict.fromkeys(line for each in results for line in each.splits.problems()):
        print(f"oltr: {line}", file=sys.stderr)
    if args.json:
        for each in results:
            print(_json({"name": each.name, **each.summary}))
        return 0
    files = report(results, page)
    print(table(results))
    if sets := open_set_table(results):
        print(f"\n{sets}")
    if together := observation_table(results):
        print(f"\n{together}")
    print(f"\nprediction sets that miss at most {100 * ALPHA:g} %, on the known test images")
    print(set_table(results))
    print(f"\nreport  {files.html}\nnumbers {files.json}")
    return 0


def _parts(names: Sequence[str]) -> list[str]:
    """For each name one part of a path, no two alike: a name may be a whole path, or hold `..`."""
    found: list[str] = []
    for name in names:
        words = [word for word in re.split(r"[/\\:]", name) if word not in ("", ".", "..")]
        stem = part = "_".join(words)[-80:] or "run"
        number = 1
        while part.casefold() in map(str.casefold, found):
            number += 1
            part = f"{stem}_{number}"
        found.append(part)
    return found


def _by(args: argparse.Namespace) -> Literal["embeddings", "scores"]:
    """Whose mean an observation goes by."""
    if args.by is not None and args.observations is None:
        args.usage("--by says how to answer --observations, which are not there")
    return "scores" if args.by == "scores" else "embeddings"


def _report_folder(args: argparse.Namespace, folders: Sequence[Path]) -> Path:
    """That of the runs, or of what they would be under another expectation."""
    if args.out is not None:
        return Path(args.out)
    out = folders[0]
    if len(folders) > 1:
        out = Path(os.path.commonpath([folder.resolve() for folder in folders]))
        if out == Path(out.anchor):  # nothing in common but the root
            out = Path()
    return out if args.test_prior is None else out / f"test_prior_{args.test_prior}"


def run_predict(args: argparse.Namespace) -> int:
    mean = _by(args)
    if args.set_method is not None and args.set is None:
        args.usage("--set-method says over what to miss the share of --set, which is not there")
    if args.nearest is not None and args.set is not None:
        args.usage("--nearest and --set: expected one of them; a set names all of its classes")

    from oltr_ext.nn import OLTRHead
    from oltr_ext.serve.predict import predict_images
    from oltr_ext.serve.trained import load_trained

    nearest = args.nearest or 3
    if args.set is not None and args.observations is not None:
        raise ValueError("--set and --observations: expected one of them")
    args.images = [name for each in args.images for name in _inside(each)]
    trained = load_trained(args.checkpoint, device=args.device, stream=args.stream)
    if args.set is not None:
        return _predict_sets(args, trained)
    by = "distance" if isinstance(trained.model.head, OLTRHead) else "probability"
    bad: list[Exception] = []
    on_error = None if args.debug else bad.append
    if args.observations is not None:
        from oltr_ext.serve.observations import observations_of, predict_observations

        by = "probability" if mean == "scores" else by
        root = getattr(trained.config.data, "root", None)
        seen = observations_of(args.images, args.observations, root)
        answers = predict_observations(
            trained, args.images, seen, by=mean, nearest=nearest, on_error=on_error
        )
    else:
        answers = predict_images(trained, args.images, nearest=nearest, on_error=on_error)
    for found in answers:
        if args.json:
            print(_json(dataclasses.asdict(found)))
            continue
        near = ", ".join(f"{name} {value:.3g}" for name, value in found.nearest)
        label = found.label or "unknown"
        print(f"{found.path}: {label}  {found.score} {found.confidence:.3g}  by {by}: {near}")
    for error in bad:
        print(f"oltr: {one_line(error)}", file=sys.stderr)
    return 1 if bad else 0


def _inside(name: str) -> list[str]:
    """The images of a folder; or the file, by the name it was called by."""
    from oltr_ext.serve.discover_parts import files_of

    if not Path(name).is_dir():
        return [name]
    passed: list[str] = []
    found = [str(path) for path in files_of([name], passed.append)]
    for line in passed:
        print(f"oltr: {line}", file=sys.stderr)
    return found


def _predict_sets(args: argparse.Namespace, trained: Trained) -> int:
    from oltr_ext.serve.sets import SetAnswer, image_sets

    method = args.set_method or "shots"
    asked = SetAnswer(trained, args.set, method)
    bad: list[Exception] = []
    rows = image_sets(trained, args.images, asked, None if args.debug else bad.append)
    for row, found in zip(rows, asked.gathered(rows), strict=True):
        pairs = [*zip(found.labels.tolist(), found.probability.tolist(), strict=True)]
        if args.json:
            says = {"path": row.path, "set": pairs, "unknown": found.unknown}
            print(_json({**says, "alpha": args.set, "method": method}))
            continue
        text = ", ".join(f"{name} {p:.3g}" for name, p in pairs) or "no class"
        print(f"{row.path}: {text}{'  (unknown)' if found.unknown else ''}")
    for error in bad:
        print(f"oltr: {one_line(error)}", file=sys.stderr)
    return 1 if bad else 0


def _json(found: object) -> str:
    """A line of JSON, which has neither NaN nor infinity: null stands for them."""
    from oltr_ext.metrics import json_ready

    return json.dumps(json_ready(found), allow_nan=False)


def run_discover(args: argparse.Namespace) -> int:
    from oltr_ext.serve.discover import discover
    from oltr_ext.serve.discover_files import CSV, PAGE
    from oltr_ext.serve.trained import load_trained

    trained = load_trained(args.checkpoint, device=args.device)
    out = args.out or trained.path.parent / "discovered"
    found = discover(trained, args.images, out=out, nearest=args.nearest, say=tell)
    print(f"{len(found):,} of {found.seen:,} images are unknown")
    if found.groups:
        print(
            f"{counted(len(found.groups), 'group')}, {len(found.believed):,} of them at least "
            f"{found.limit} sure; {len(found.odd):,} odd ones out\n"
        )
    for group in found.groups[:20]:
        near = ", ".join(f"{name} {value:.2f}" for name, value in group.nearest)
        print(
            f"group {group.number}: {counted(group.size, 'image')}, sure {group.sure:.2f}, near "
            f"{near}"
        )
    if len(found.groups) > 20:
        print(f"... and {len(found.groups) - 20:,} more")
    for line in found.notes:
        print(f"oltr: {line}", file=sys.stderr)
    print(f"\nnames   {out / CSV}\nsheets  {out / PAGE}")
    if found.groups:
        command = ["oltr", "enroll", str(args.checkpoint), "--from", str(out / CSV)]
        print(f"enroll  once they have names: {shlex.join(command)}")
    if found.bad:
        print(f"oltr: {len(found.bad):,} could not be read:", file=sys.stderr)
    for text in found.bad[:20]:
        print(f"oltr: {shorten(text, 240, placeholder=' ...')}", file=sys.stderr)
    if len(found.bad) > 20:
        print(f"oltr: ... and {len(found.bad) - 20:,} more", file=sys.stderr)
    return 1 if found.bad else 0


def run_data_check(args: argparse.Namespace) -> int:
    from oltr_ext.config.loading import load_config
    from oltr_ext.config.schema import ListData
    from oltr_ext.engine.verify import check_data, check_table

    data = load_config(args.config, args.set).data
    if not isinstance(data, ListData):
        raise ValueError(f"{args.config}: data.kind is {data.kind}; only lists have files to check")
    found = check_data(data, decode=args.decode)
    print(json.dumps(dataclasses.asdict(found)) if args.json else check_table(found))
    return 1 if found.problems else 0


def run_data_make(args: argparse.Namespace) -> int:
    from oltr_ext.data.make import make

    make(args.name, args.source, say=say)
    return 0


def run_data_pack(args: argparse.Namespace) -> int:
    from oltr_ext.config.loading import load_config
    from oltr_ext.engine.pack_lists import pack_lists

    out = args.out or Path(f"{Path(args.config).stem}.npz")
    pack_lists(load_config(args.config, args.set), out, say=tell)
    print(f"pack  {out}")
    return 0


def run_embed(args: argparse.Namespace) -> int:
    from oltr_ext.data.embeddings import read_manifest
    from oltr_ext.data.samplers import batch_for
    from oltr_ext.serve.embed import embed

    path = embed(
        args.source,
        args.out,
        overrides=args.set,
        dtype=args.dtype,
        device=args.device,
        say=tell,
    )
    batch = batch_for(read_manifest(path).splits["train"].rows)
    # quoted for YAML, to which 0012 and 2026-11-30 are no names
    keys = [f"data.root={json.dumps(str(path.parent), ensure_ascii=False)}"]
    if batch < 128:  # what the configuration has
        keys += [f"stage1.batch_size={batch}", f"stage2.batch_size={batch}"]
    how = " ".join(f"--set {shlex.quote(key)}" for key in keys)
    print(f"embeddings  {path.parent}")
    print(f"train       oltr train embeddings --method oltr-plus {how}")
    return 0


def run_export(args: argparse.Namespace) -> int:
    from oltr_ext.serve.export import export
    from oltr_ext.serve.trained import load_trained

    trained = load_trained(args.checkpoint, device="cpu")
    suffix = {"torch": ".pt2", "aoti": ".aoti.pt2", "onnx": ".onnx"}[args.format]
    out = args.out or trained.path.with_suffix(suffix)
    path = export(trained, out, format=args.format, any_size=args.any_size, say=tell)
    print(f"program  {path}")
    return 0


def run_info(args: argparse.Namespace) -> int:
    from oltr_ext.info import main as info

    return info(["--json"] if args.json else [])


def run_methods(args: argparse.Namespace) -> int:
    rows = [("method", "paper", "what it changes", "command")]
    rows += [
        (name, method.paper, method.changes, f"oltr train icons --method {name}")
        for name, method in METHODS.items()
    ]
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(w) for cell, w in zip(row, width, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def one_line(error: Exception) -> str:
    """What an error says, its lines joined; of long ones and of many the beginning."""
    text = str(error).strip() or type(error).__name__
    if "Original Traceback" in text:  # of a loader process, with the message at its end
        parts = re.split(r"^[\w.]*(?:Error|Exception): ", text, flags=re.MULTILINE)
        text = parts[-1] if len(parts) > 1 else text.splitlines()[-1]
    lines = [shorten(line, 240, placeholder=" ...") for line in text.splitlines() if line.strip()]
    more = (
        f"; and {counted(len(lines) - 6, 'more line')} (--debug shows them)"
        if len(lines) > 6
        else ""
    )
    return "; ".join(lines[:6]).replace(":; ", ": ").replace(".; ", ". ") + more
