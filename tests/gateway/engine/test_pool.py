"""Which engine of a pool gets a request."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_pair import Engine, answer, first_asked, request, run, until
from trimaran.errors import RequestError
from trimaran_gateway.engine.pool import MOST_AHEAD, EnginePool
from trimaran_gateway.engine.prefixes import BLOCK, block_keys


def test_requests_are_spread(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1")), pool.generate(request("2")), pool.generate(request("3")):
            await until(lambda: a.asked.qsize() + b.asked.qsize() == 3)
            assert {a.asked.qsize(), b.asked.qsize()} == {1, 2}
            assert pool.in_flight == 3
        assert pool.in_flight == 0

    run(tmp_path, scenario)


def test_a_conversation_stays_where_its_cache_is(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        prompts = {name: [number] * (3 * BLOCK) for number, name in enumerate("xyz")}
        homes = {name: await answer(pool, (a, b), request(name, *ids), 5) for name, ids in prompts.items()}
        assert {engine.name for engine in homes.values()} == {"a", "b"}, "what none knows goes to the emptier"
        for name, ids in prompts.items():
            longer = request(f"{name}2", *ids, *range(BLOCK))
            assert await answer(pool, (a, b), longer, 5) is homes[name]

    run(tmp_path, scenario)


def test_the_answer_is_part_of_the_next_prompt(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        long_answer = list(range(4 * BLOCK))
        home = await answer(pool, (a, b), request("1", 7, 8), *long_answer)
        await answer(pool, (a, b), request("2", *[9] * (6 * BLOCK)), 5)
        assert await answer(pool, (a, b), request("3", 7, 8, *long_answer, 3), 5) is home

    run(tmp_path, scenario)


def test_a_common_beginning_does_not_make_one_engine_do_all(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        system = [3] * BLOCK
        for number in range(4):
            await answer(pool, (a, b), request(str(number), *system, *[number] * (3 * BLOCK)), 5)
        sizes = [len(seat.seen) for seat in pool._seats]
        assert min(sizes) > 3, "a quarter of the prompt is not worth it"

    run(tmp_path, scenario)


def test_a_busy_engine_gives_its_conversations_away(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        prompt = [4] * (2 * BLOCK)
        home = await answer(pool, (a, b), request("first", *prompt), 5)
        async with asyncio.TaskGroup() as group:
            done = asyncio.Event()

            async def hold(number: int) -> None:
                async with pool.generate(request(str(number), *prompt)):
                    await done.wait()

            for number in range(MOST_AHEAD + 2):
                group.create_task(hold(number))
            await until(lambda: a.asked.qsize() + b.asked.qsize() == MOST_AHEAD + 2)
            assert home.asked.qsize() == MOST_AHEAD + 1
            done.set()

    run(tmp_path, scenario)


def test_a_restarted_engine_has_forgotten(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        prompt = [4] * (2 * BLOCK)
        home = await answer(pool, (a, b), request("1", *prompt), 5)
        await home.stop()
        await until(lambda: pool.status is not None and pool.status.state == "degraded")
        home.start(instance="another")
        await until(lambda: pool.status is not None and pool.status.state == "ready")
        async with pool.generate(request("2", *prompt[:BLOCK])):
            pass
        seat = next(seat for seat in pool._seats if seat.instance == "another")
        assert len(seat.seen) <= 1

    run(tmp_path, scenario)


def test_a_refused_prompt_is_not_remembered(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        async with pool.generate(request("1", *[4] * (3 * BLOCK))) as stream:
            reading = asyncio.ensure_future(anext(stream))
            first = await first_asked(a, b)
            await first.refuse("1", "context_length_exceeded")
            with pytest.raises(RequestError):
                await reading
        assert [len(seat.seen) for seat in pool._seats] == [0, 0]

    run(tmp_path, scenario)


def test_a_prompt_that_is_computed_right_now_draws_others(tmp_path: Path) -> None:
    """It is not remembered yet, but its prefix will be there when the next one's turn comes."""

    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        prompt = [4] * (3 * BLOCK)
        async with pool.generate(request("1", *prompt)):
            home = await first_asked(a, b)
            async with pool.generate(request("2", *prompt)):
                await until(lambda: home.asked.qsize() == 2)
        assert [seat.seen.match(block_keys(prompt)) for seat in pool._seats] == [0, 0]

    run(tmp_path, scenario)


def test_a_slow_engine_comes_last(tmp_path: Path) -> None:
    async def scenario(pool: EnginePool, a: Engine, b: Engine) -> None:
        a.awake.clear()
        await until(lambda: pool.status is not None and pool.status.state == "degraded")
        assert pool.status is not None
        assert pool.status.detail.startswith("engine 0 is degraded: slow")
        async with pool.generate(request("1")), pool.generate(request("2")):
            await until(lambda: b.asked.qsize() == 2)
        a.awake.set()
        await until(lambda: pool.status is not None and pool.status.state == "ready")

    run(tmp_path, scenario, slow_s=1.0)
