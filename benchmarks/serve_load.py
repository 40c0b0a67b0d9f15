"""`oltr serve` under load, beside `predict` offline on the same images.

    python benchmarks/serve_load.py [--rounds 5]

Trains two small runs, serves each, and asks over HTTP from a process of its own: 32 clients, each
with one image at a time, in turn with `predict_images` in this process; then four times as many
requests a second as were answered. Writes results/serve_load.json and results/serve_load.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from machine import machine
from PIL import Image

RESULTS = Path(__file__).parent / "results"
CLIENTS, OVER = 32, 4
TICKS = os.sysconf("SC_CLK_TCK")
Reply = tuple[int, float, str | None]
"""Status, seconds, and what it was taken for."""


def photos(folder: Path, classes: int, each: int, size: tuple[int, int], kind: str) -> list[Path]:
    """Smooth noise, whose files are about as large as photos of that size."""
    draw, found = np.random.default_rng(0), list[Path]()
    folder.mkdir(parents=True)
    for label in range(classes):
        for n in range(each):
            coarse = draw.integers(0, 256, (8 + 4 * label, 8 + 4 * label, 3), np.uint8)
            image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            pixels = np.asarray(image) + draw.normal(0, 6, (size[1], size[0], 3))
            file = folder / f"{label}_{n}.{kind}"
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, quality=90)
            found.append(file)
    return found


def trained(
    folder: Path, backbone: str, image_size: int, photo: tuple[int, int], kind: str
) -> Path:
    """A run of two short stages: what it learned costs nothing."""
    import oltr_ext

    files = photos(folder / "photos", 4, 10, photo, kind)
    for part, use in {"train": range(6), "val": range(6, 8), "test": range(8, 10)}.items():
        chosen = [f for f in files if int(f.stem.split("_")[1]) in use]
        lines = [f"{file.name} {file.stem.split('_')[0]}\n" for file in chosen]
        (folder / f"{part}.txt").write_text("".join(lines))
    lists = {part: str(folder / f"{part}.txt") for part in ("train", "val", "test")}
    data = {"kind": "lists", "root": str(folder / "photos"), "image_size": image_size, **lists}
    stage = {"epochs": 2, "batch_size": 16, "lr": 0.01}
    config = {"data": {**data, "workers": 0}, "model": {"backbone": backbone}, "stage1": stage}
    changes = {"stage1.epochs": 1, "stage2.epochs": 1}
    return oltr_ext.train(
        config, out=folder / "run", method="oltr-plus", settings=changes, say=lambda _: None
    )


def used(pid: int) -> float:
    """Seconds of processor that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy() -> float:
    """Seconds of processor that all have had."""
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / TICKS


class Asking:
    """The process that asks, by a line of JSON in and one out."""

    def __init__(self, url: str, files: list[Path]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--client", url, *map(str, files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **what: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


async def closed(client: httpx.AsyncClient, blobs: list[bytes], count: int) -> list[Reply]:
    """`count` images by 32 clients, each of which asks again once it is answered."""
    left, found = iter(range(count)), list[Reply]()

    async def one() -> None:
        for n in left:
            found.append(await post(client, blobs[n % len(blobs)], n))

    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return found


async def opened(
    client: httpx.AsyncClient, blobs: list[bytes], rate: float, seconds: float
) -> list[Reply]:
    """Requests at a rate, whatever becomes of those before; who wakes late catches up."""
    begin, tasks = time.perf_counter(), list[asyncio.Task[Reply]]()
    for n in range(round(rate * seconds)):
        while time.perf_counter() - begin < n / rate:
            await asyncio.sleep(0.005)
        tasks.append(asyncio.create_task(post(client, blobs[n % len(blobs)], n)))
    return await asyncio.gather(*tasks)


async def post(client: httpx.AsyncClient, blob: bytes, number: int) -> Reply:
    begin = time.perf_counter()
    try:
        reply = await client.post("/predict", content=blob)
    except httpx.HTTPError:
        return 0, time.perf_counter() - begin, None  # lost
    took = time.perf_counter() - begin
    if reply.status_code != 200:
        if "retry-after" not in reply.headers:
            return -reply.status_code, took, None
        return reply.status_code, took, None
    return 200, took, reply.json()["answers"][0]["closed"]


async def asked(url: str, files: list[Path]) -> None:
    """The client's process."""
    blobs = [file.read_bytes() for file in files]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(
        base_url=url, limits=limits, timeout=60, trust_env=False
    ) as client:
        for line in sys.stdin:
            what, begin = json.loads(line), time.perf_counter()
            replies = await (
                opened(client, blobs, what["rate"], what["seconds"])
                if "rate" in what
                else closed(client, blobs, what["count"])
            )
            took = time.perf_counter() - begin
            print(json.dumps({"seconds": took, "replies": replies}), flush=True)


def measured(folder: Path, threads: int, count: int, rounds: int, over: float) -> dict[str, Any]:
    """A run offline and served, in turn, and for some seconds asked too much."""
    import torch

    from oltr_ext.serve.predict import predict_images
    from oltr_ext.serve.trained import load_trained

    torch.set_num_threads(threads)
    run, files = folder / "run", sorted((folder / "photos").iterdir())
    model = load_trained(run, device="cpu")
    offline_files = [files[n % len(files)] for n in range(count)]
    served = subprocess.Popen(
        [sys.executable, "-m", "oltr_ext", "serve", str(run), "--port", "0", "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    assert served.stderr is not None
    line = served.stderr.readline()
    found = re.match(r"(http\S+) answers", line)
    assert found, line + served.stderr.read()
    client, rows = Asking(found[1], files), []
    pids = {"offline": os.getpid(), "server": served.pid, "client": client.process.pid}
    try:
        client.ask(count=CLIENTS)
        expected = [p.closed for p in predict_images(model, files)]
        for _ in range(rounds):
            before, everyone = {k: used(pid) for k, pid in pids.items()}, busy()
            begin = time.perf_counter()
            predict_images(model, offline_files)
            offline = time.perf_counter() - begin
            said = client.ask(count=count)
            cpu = {k: used(pid) - before[k] for k, pid in pids.items()}
            rows.append(
                {
                    "offline": count / offline,
                    "served": count / said["seconds"],
                    "latency": [took for _, took, _ in said["replies"]],
                    "statuses": Counter(str(status) for status, *_ in said["replies"]),
                    "others": max(0.0, busy() - everyone - sum(cpu.values()))
                    / (os.cpu_count() or 1)
                    / (offline + said["seconds"]),
                    "cpu": {k: v / count for k, v in cpu.items()},
                }
            )
        rate = OVER * statistics.median(row["served"] for row in rows)
        overload = client.ask(rate=rate, seconds=over) if over else None
        after = client.ask(count=len(files))
        right = Counter(label for *_, label in after["replies"]) == Counter(expected)
    finally:
        assert client.process.stdin is not None
        client.process.stdin.close()
        client.process.wait()
        served.terminate()
        served.wait()
    latency = [took for row in rows for took in row.pop("latency")]
    return {
        "threads": threads,
        "images": count,
        "rounds": rows,
        "offline": statistics.median(row["offline"] for row in rows),
        "served": statistics.median(row["served"] for row in rows),
        "ratio": statistics.median(row["served"] / row["offline"] for row in rows),
        "p50": percentile(latency, 50),
        "p99": percentile(latency, 99),
        "same_answers": right,
        "overload": overload and summed(overload["replies"], over, overload["seconds"]),
    }


def summed(replies: list[Reply], sent: float, seconds: float) -> dict[str, Any]:
    """Of an overload: requests sent within `sent` seconds, answered within `seconds`."""
    answered = [took for status, took, _ in replies if status == 200]
    return {
        "sent": len(replies) / sent,
        "requests": len(replies),
        "statuses": Counter(str(status) for status, *_ in replies),
        "answered": len(answered) / seconds,
        "p50": percentile(answered, 50),
        "p99": percentile(answered, 99),
    }


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else float("nan")


RESNET = ("torchvision:resnet18", 224, (500, 375), "jpg")
SMALL = ("small_cnn", 32, (64, 64), "png")
CASES = [  # run, threads, images a round, and whether to overload it
    ("ResNet-18 at 224, photos 500 x 375", RESNET, 2, 64, True),
    ("ResNet-18 at 224, photos 500 x 375", RESNET, 1, 64, False),
    ("small network at 32, pictures 64 x 64", SMALL, 2, 256, False),  # 4 times is more
    ("small network at 32, pictures 64 x 64", SMALL, 1, 256, False),  # than a client can ask
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--over", type=float, default=5, metavar="SECONDS", help="of overload")
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="default: all")
    parser.add_argument("--runs", type=Path, help="folder to keep the runs in; default: none")
    parser.add_argument("--client", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        asyncio.run(asked(args.client[0], [Path(file) for file in args.client[1:]]))
        return
    path, rows = RESULTS / "serve_load.json", []
    if args.case is not None and path.is_file():
        rows = json.loads(path.read_text())["rows"]
    for number, (name, run, threads, count, overload) in enumerate(CASES):
        if args.case not in (None, number):
            continue
        with tempfile.TemporaryDirectory() as fresh:
            folder = (args.runs or Path(fresh)) / run[3]
            if not (folder / "run" / "model.safetensors").is_file():
                trained(folder, *run)
            over = args.over if overload else 0
            row = measured(folder, threads, count, args.rounds, over)
        rows = [each for each in rows if each["case"] != number]
        rows.append({"case": number, "name": name, **row})
    rows.sort(key=lambda each: each["case"])
    about = {"machine": machine(), "clients": CLIENTS, "over": OVER, "rows": rows}
    path.write_text(json.dumps(about, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(about))
    print(markdown(about))


def markdown(about: dict[str, Any]) -> str:
    lines = [
        "# `oltr serve` under load",
        "",
        f"{about['clients']} clients, each with one image at a time, in a process beside the "
        f"server's (httpx, on the same {os.cpu_count()} cores), in turn with `predict_images` on "
        "the same files in a third; medians of rounds. The client's processor time counts against "
        "the server. Others: the share of the cores that other processes took meanwhile, median "
        "and most; above 5 % (*) rates and times are of that day's company, and processor time per "
        "image is what compares.",
        "",
        "| network | threads | offline, images/s | served | served / offline | p50, ms | p99, ms | "
        "ms of a core per image: offline, server, client | others |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in about["rows"]:
        cpu = [
            statistics.median(each["cpu"][k] for each in row["rounds"]) * 1000
            for k in ("offline", "server", "client")
        ]
        others = [each["others"] for each in row["rounds"]]
        lines.append(
            f"| {row['name']} | {row['threads']} | {row['offline']:.0f} | {row['served']:.0f} | "
            f"{row['ratio']:.2f} | {row['p50'] * 1e3:.0f} | {row['p99'] * 1e3:.0f} | "
            f"{cpu[0]:.1f}, {cpu[1]:.1f}, {cpu[2]:.1f} | "
            f"{statistics.median(others):.0%}, {max(others):.0%}{'*' * (max(others) > 0.05)} |"
        )
    lines += [
        "",
        f"Then {about['over']} times as many requests a second as were answered, whatever became "
        "of those before. Each was answered or refused with a 503 and Retry-After; lost are those "
        "without either. Times are those of the answered ones.",
        "",
        "| network | sent, requests/s | answered | of them 200 | 503 | lost, other | p50, ms | "
        "p99, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in about["rows"]:
        if not (over := row["overload"]):
            continue
        good, full = (over["statuses"].get(key, 0) for key in ("200", "503"))
        lines.append(
            f"| {row['name']} | {over['sent']:.0f} | {over['answered']:.0f}/s | {good:,} | "
            f"{full:,} | {over['requests'] - good - full} | {over['p50'] * 1e3:.0f} | "
            f"{over['p99'] * 1e3:.0f} |"
        )
    facts = about["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"`python benchmarks/serve_load.py`, {facts['date']}, {facts['processor']}, "
            "torch "
            f"{facts['torch']}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
