"""`oltr serve` under load: batches over requests, refusals, and no lost answer."""

from __future__ import annotations

import asyncio
import importlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from served import png, serving, until

from oltr_ext.service import app as service_app
from oltr_ext.service.batches import Batcher, ModelError
from oltr_ext.service.room import FullError, Limits, Room


@pytest.fixture
def held(monkeypatch):
    """A gate that the model's thread waits at."""
    gate, whole = threading.Event(), service_app.answer

    def answer(batch):
        assert gate.wait(20)
        return whole(batch)

    monkeypatch.setattr(service_app, "answer", answer)
    yield gate
    gate.set()


def test_requests_share_batches(finished, held):
    with serving(finished, batch=8) as (client, service), ThreadPoolExecutor(17) as pool:
        ask = [
            pool.submit(client.post, f"/predict?nearest={1 + n % 3}", content=png(seed=n))
            for n in range(17)
        ]
        until(lambda: len(service.batcher) >= 9)  # the others are with the model
        held.set()
        alone = [client.post("/predict", content=png(seed=n)).json() for n in range(17)]
        for n, (each, other) in enumerate(zip(ask, alone, strict=True)):
            (one,), (other,) = each.result().json()["answers"], other["answers"]
            assert [name for name, _ in one["nearest"]] == [
                name for name, _ in other["nearest"][: 1 + n % 3]
            ]
            assert one["closed"] == other["closed"] and one["label"] == other["label"]
            assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
        text = client.get("/metrics").text
        batches = int(re.search(r"oltr_batch_images_count (\d+)", text)[1])
        assert batches <= 3 + 1 + 17 and "oltr_batch_images_sum 34" in text


def test_overload_is_refused_at_once_and_no_answer_is_lost(finished, held):
    with serving(finished, batch=4, images=4, queue=8) as (client, service):
        with ThreadPoolExecutor(32) as pool:
            asked = [pool.submit(client.post, "/predict", content=png(seed=n)) for n in range(32)]
            until(lambda: sum(each.done() for each in asked) == 24)
            assert service.room.images == 8 and len(service.batcher) <= 8
            assert client.get("/health/live").status_code == 200
            held.set()
            replies = [each.result() for each in asked]
        assert sorted(reply.status_code for reply in replies) == [200] * 8 + [503] * 24
        for reply in replies:
            if reply.status_code == 503:
                assert 1 <= int(reply.headers["retry-after"]) <= 60
                assert "try again" in reply.json()["error"]
            else:
                assert len(reply.json()["answers"]) == 1
        assert "oltr_rejected_total 24" in client.get("/metrics").text
        assert (service.room.images, service.room.held) == (0, 0)
        form = [("x", (str(n), png(seed=n))) for n in range(4)]
        assert client.post("/predict", files=form).status_code == 200


def test_bytes_are_bounded_over_all_requests(finished, held):
    with serving(finished, body=100_000, held=150_000) as (client, service):
        with ThreadPoolExecutor(2) as pool:
            blob = png((150, 150))
            assert 60_000 < len(blob) < 75_000
            asked = [pool.submit(client.post, "/predict", content=blob) for _ in range(2)]
            until(lambda: service.room.held == 2 * len(blob))
            assert client.post("/predict", content=blob).status_code == 503
            pieces = (blob[n : n + 5000] for n in range(0, len(blob), 5000))
            assert client.post("/predict", content=pieces).status_code == 503  # of unknown length
            held.set()
            assert [each.result().status_code for each in asked] == [200, 200]
        assert service.room.held == 0


def test_time_runs_out_and_what_waited_is_not_asked(finished, held, caplog):
    with serving(finished, seconds=0.3, batch=1) as (client, service):
        began = time.monotonic()
        with ThreadPoolExecutor(3) as pool:
            replies = list(pool.map(lambda n: client.post("/predict", content=png()), range(3)))
        assert time.monotonic() - began < 5
        assert [reply.status_code for reply in replies] == [503] * 3
        assert "not done within 0.3 s" in replies[0].json()["error"]
        assert service.room.images == 0
        held.set()
        until(lambda: len(service.batcher) == 0)
        assert client.post("/predict", content=png()).status_code == 200
        text = client.get("/metrics").text
        assert "oltr_batch_images_count 2" in text  # the one that had begun, and the last
        assert "Traceback" not in caplog.text


def test_a_question_that_cannot_be_answered_fails_by_itself(caplog):
    sizes = []

    def answer(batch):
        sizes.append(len(batch))
        if 3 in batch:
            raise MemoryError("no room for 3")
        return [-each for each in batch]

    async def ask():
        batcher = Batcher(answer, size=8, wait=0.05)
        futures = [asyncio.get_running_loop().create_future() for _ in range(6)]
        for n, future in enumerate(futures):
            batcher.put(n, future)
        futures[5].cancel()
        batcher.start()
        found = await asyncio.gather(*futures, return_exceptions=True)
        batcher.stop()
        assert not batcher.alive and batcher.pace > 0
        return found

    *found, last = asyncio.run(ask())
    assert isinstance(found[3], ModelError) and isinstance(last, asyncio.CancelledError)
    assert found[:3] + found[4:] == [0, -1, -2, -4] and sizes == [5, 1, 1, 1, 1, 1]
    assert "no room for 3" in caplog.text and "no room" not in str(found[3])


def test_a_batch_goes_when_it_is_full_or_the_first_has_waited():
    seen = []

    async def ask(size, wait, count):
        seen.clear()
        batcher = Batcher(list, size=size, wait=wait, seen=lambda n, s: seen.append(n))
        batcher.start()
        futures = [asyncio.get_running_loop().create_future() for _ in range(count)]
        begin = time.monotonic()
        for n, future in enumerate(futures):
            batcher.put(n, future)
        assert await asyncio.gather(*futures) == list(range(count))
        took = time.monotonic() - begin
        batcher.stop()
        return took

    assert asyncio.run(ask(4, 30, 8)) < 10 and seen == [4, 4]
    assert asyncio.run(ask(4, 0.2, 3)) > 0.2 and seen == [3]


def test_what_is_asked_before_the_end_is_answered():
    async def ask():
        batcher = Batcher(lambda batch: [time.sleep(0.02)] * len(batch), size=2, wait=30)
        futures = [asyncio.get_running_loop().create_future() for _ in range(7)]
        batcher.start()
        for future in futures:
            batcher.put(None, future)
        await asyncio.to_thread(batcher.stop)
        return await asyncio.gather(*futures)

    assert asyncio.run(ask()) == [None] * 7


def test_room_is_given_back():
    room = Room(Limits(images=2, queue=3, body=10, held=20), lambda: 2.6)
    with room.seat() as one:
        one.take(images=2, held=10)
        with pytest.raises(FullError) as refused, room.seat() as two:
            two.take(images=1, held=10)
            assert (room.images, room.held) == (3, 20)
            two.take(images=1)
        assert refused.value.seconds == 8
        assert (room.images, room.held) == (2, 10)
    assert (room.images, room.held) == (0, 0)


@pytest.mark.parametrize(
    "values",
    [{"body": 0}, {"seconds": float("nan")}, {"seconds": float("inf")}, {"queue": 3}, {"held": 5}],
)
def test_limits_that_do_not_hold(values):
    with pytest.raises(ValueError, match=f"limits.{next(iter(values))}: expected "):
        Limits(**values)


def test_a_client_that_goes_away_leaves_nothing_behind(finished, held):
    with serving(finished) as (client, service):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/predict", content=png(), timeout=0.2)
        held.set()
        until(lambda: service.room.images == 0 and len(service.batcher) == 0)
        assert client.post("/predict", content=png()).status_code == 200


def test_the_load_test_loses_no_reply(finished, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    load = importlib.import_module("serve_load")
    blobs = [png(seed=n) for n in range(3)]

    async def ask(url, **what):
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            if "rate" in what:
                return await load.opened(client, blobs, **what)
            return await load.closed(client, blobs, **what)

    with serving(finished, queue=4, images=4, batch=2) as (client, _):
        url = str(client.base_url)
        replies = asyncio.run(ask(url, count=70))
        assert len(replies) == 70 and {status for status, *_ in replies} <= {200, 503}
        replies = asyncio.run(ask(url, rate=300, seconds=0.3))
        found = load.summed(replies, 0.3, 0.6)
        good, full = (found["statuses"][key] for key in ("200", "503"))
        assert good + full == found["requests"] == 90 and good
        assert found["answered"] == pytest.approx(good / 0.6) and 0 < found["p50"] <= found["p99"]
    (lost,) = asyncio.run(ask(url, count=1))
    assert lost[0] == 0
