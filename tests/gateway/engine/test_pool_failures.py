"""What a pool does when engines fail, refuse, hang or come back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from engine_pair import Engine, first_asked, request, run, until
from trimaran.errors import OverloadedError, PeerError
from trimaran.wire import EngineStats
from trimaran_gateway.engine.client import EngineClient
from trimaran_gateway.engine.pool import EnginePool


def test_what_was_not_begun_is_asked_of_another_engine(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1", deadline=50.0)) as stream:
            reading = asyncio.ensure_future(anext(stream))
            first = await first_asked(a, b)
            other = b if first is a else a
            await first.stop()
            again = await other.asked.get()
            assert again.request_id == "1"
            assert again.deadline is not None
            assert 0 < again.deadline < 50, "the time that was lost is not given back"
            assert pool.in_flight == 1
            await other.tell("1", 8, finish="stop")
            assert (await reading).ids == [8]

    run(tmp_path, scenario)


def test_what_was_begun_fails_and_the_others_go_on(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as broken, pool.generate(request("2")) as whole:
            await until(lambda: not a.asked.empty() and not b.asked.empty())
            await a.tell("1", 5)
            assert (await anext(broken)).ids == [5]
            await a.stop()
            with pytest.raises(PeerError, match="went away"):
                await anext(broken)
            await b.tell("2", 6, finish="stop")
            assert (await anext(whole)).ids == [6]
        status = pool.status
        assert status is not None
        assert (status.state, status.detail) == ("degraded", "engine 0 is away")
        assert pool.is_ready
        a.start(instance="a again")
        await until(lambda: pool.status is not None and pool.status.state == "ready")
        assert len(pool._seats[0].seen) == 0

    run(tmp_path, scenario)


def test_a_full_engine_is_passed_over_and_all_full_is_said(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            reading = asyncio.ensure_future(anext(stream))
            first = await first_asked(a, b)
            await first.refuse("1", "overloaded")
            other = b if first is a else a
            await other.asked.get()
            await other.refuse("1", "overloaded")
            with pytest.raises(OverloadedError):
                await reading

    run(tmp_path, scenario)


def test_no_engine_is_asked_when_the_gateway_stops(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            first = await first_asked(a, b)
            await pool.give_up("the server is shutting down")
            with pytest.raises(PeerError, match="shutting down"):
                await anext(stream)
            other = b if first is a else a
            assert other.asked.empty()

    run(tmp_path, scenario)


def test_no_engine_at_all(tmp_path: Path) -> None:
    async def main() -> None:
        pool = EnginePool([EngineClient(f"ipc://{tmp_path}/{name}.sock", poll_s=0.05) for name in "ab"])
        await pool.start()
        try:
            assert pool.status is None
            assert await pool.stats() is None
            with pytest.raises(PeerError, match="the engine is not running"):
                async with pool.generate(request("1")):
                    pass
        finally:
            await pool.close()

    asyncio.run(main())


def test_leaving_early_aborts(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")):
            first = await first_asked(a, b)
        assert await first.aborted.get() == "1"

    run(tmp_path, scenario)


def test_a_lost_stream_is_nobodys_work(tmp_path: Path) -> None:
    """A stream that fails is no longer counted as its engine's work while another answers."""

    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            first = await first_asked(a, b)
            reading: Any = asyncio.ensure_future(anext(stream))
            await first.refuse("1", "unavailable")
            other = b if first is a else a
            await other.asked.get()
            clients = {seat.client._endpoint: seat.client.in_flight for seat in pool._seats}
            assert clients == {first.endpoint: 0, other.endpoint: 1}
            await other.tell("1", 2, finish="stop")
            assert (await reading).ids == [2]

    run(tmp_path, scenario)


@pytest.mark.parametrize("second", [None, "stop", "abort"])
def test_what_an_engine_gives_up_is_asked_of_another(tmp_path: Path, second: str | None) -> None:
    """An engine that stops may end what waits with an empty batch; what all give up ends so."""

    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            reading: Any = asyncio.ensure_future(anext(stream))
            first = await first_asked(a, b)
            other = b if first is a else a
            await first.tell("1", finish="abort")
            await other.asked.get()
            ids = [] if second == "abort" else [8]
            await other.tell("1", *ids, finish=second)
            assert ((await reading).ids, (await reading).finish_reason) == (ids, second)
            assert stream.is_over == (second is not None)
        assert sum(seat.moved for seat in pool._seats) == 1

    run(tmp_path, scenario)


def test_what_was_begun_and_given_up_is_not_asked_again(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            first = await first_asked(a, b)
            await first.tell("1", 5)
            assert (await anext(stream)).ids == [5]
            await first.tell("1", finish="abort")
            assert (await anext(stream)).finish_reason == "abort"
            assert (b if first is a else a).asked.empty()

    run(tmp_path, scenario)


@pytest.mark.parametrize("limits", [{"silence_s": 1.0}, {"patience_s": 0.5}], ids=["gone", "left"])
def test_a_hung_engine_drops_what_another_was_asked_for(tmp_path: Path, limits: dict[str, float]) -> None:
    """When it wakes up it finds the request and its end; what it sends all the same is nobody's."""

    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            reading: Any = asyncio.ensure_future(anext(stream))
            hung = await first_asked(a, b)
            hung.asked.get_nowait()
            hung.awake.clear()
            other = b if hung is a else a
            await other.asked.get()
            await hung.tell("1", 3, 4)
            await other.tell("1", 8, finish="stop")
            assert (await reading).ids == [8]
            hung.awake.set()
            assert await hung.aborted.get() == "1"
            stale = next(seat for seat in pool._seats if seat.moved)
            await until(lambda: stale.client.late_tokens == 2)
            assert other.aborted.empty()

    run(tmp_path, scenario, **limits)


def test_what_was_begun_waits_for_a_silent_engine(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            silent = await first_asked(a, b)
            await silent.tell("1", 5)
            assert (await anext(stream)).ids == [5]
            reading: Any = asyncio.ensure_future(anext(stream))
            silent.awake.clear()
            await until(lambda: any(seat.client.silence_s > 3 * pool.patience_s for seat in pool._seats))
            silent.awake.set()
            await silent.tell("1", 6, finish="stop")
            assert (await reading).ids == [6]
            assert (b if silent is a else a).asked.empty()

    run(tmp_path, scenario, patience_s=0.2)


def test_nothing_is_gained_by_leaving_one_silent_engine_for_another(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            reading: Any = asyncio.ensure_future(anext(stream))
            first = await first_asked(a, b)
            a.awake.clear()
            b.awake.clear()
            await until(lambda: all(seat.client.silence_s > 3 * pool.patience_s for seat in pool._seats))
            assert [seat.moved for seat in pool._seats] == [0, 0]
            first.awake.set()
            await first.tell("1", 8, finish="stop")
            assert (await reading).ids == [8]

    run(tmp_path, scenario, patience_s=0.5, slow_s=0.1)


def test_the_gateways_own_sleep_is_nobodys_silence(tmp_path: Path) -> None:
    """As when it was stopped by Ctrl-Z, or the machine was suspended."""

    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")) as stream:
            reading: Any = asyncio.ensure_future(anext(stream))
            first = await first_asked(a, b)
            time.sleep(1.0)
            assert [seat.client.silence_s < 0.4 for seat in pool._seats] == [True, True]
            await first.tell("1", 8, finish="stop")
            assert (await reading).ids == [8]
            assert [seat.moved for seat in pool._seats] == [0, 0]

    run(tmp_path, scenario, patience_s=0.7, silence_s=0.8)


def test_sums_do_not_fall_when_an_engine_does_not_report(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        def report(tokens: float, instance: str) -> EngineStats:
            return EngineStats(counters={"x_total": tokens}, gauges={"running": 1}, instance=instance)

        async def total() -> float:
            stats = await pool.stats()
            assert stats is not None
            return stats.counters["x_total"]

        a.stats, b.stats = report(10, "a"), report(5, "b")
        assert await total() == 15
        await a.stop()
        await until(lambda: pool.statuses["0"] is None)
        b.stats = report(6, "b")
        stats = await pool.stats()
        assert stats is not None
        assert stats.counters["x_total"] == 16
        assert stats.gauges["running"] == 1
        assert stats.gauges['attention_service_up{engine="0"}'] == 0
        a.stats = report(2, "a again")
        a.start(instance="a again")
        await until(lambda: pool.statuses["0"] is not None)
        assert await total() == 18

    run(tmp_path, scenario)
