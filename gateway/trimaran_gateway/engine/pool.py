"""Several attention services as one engine: each request goes to the one that serves it best.

That is the one with the least to do; but a prompt whose greater part an engine has computed before goes
there, unless that engine is much busier. What an engine loses before it sent anything is asked of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import msgspec
from trimaran.errors import OverloadedError, PeerError
from trimaran.telemetry import Log
from trimaran.wire import EngineStats, EngineStatus, Generate, TokenBatch

from trimaran_gateway.engine.client import EngineClient
from trimaran_gateway.engine.interface import Answer
from trimaran_gateway.engine.prefixes import SeenPrefixes, block_keys
from trimaran_gateway.engine.totals import Books, total_stats, total_status

MOST_AHEAD = 8
"""Requests that an engine may have more than the idlest and still get those whose prompts it knows."""

PATIENCE_S = 12.0
"""How long requests that nothing was heard of wait for a silent engine while another one is well."""

_LOOKS = 8
"""How often a request looks in that time whether its engine is silent."""

_LEAST_DEADLINE_S = 0.001
_log = Log(__name__)


@dataclass
class Seat:
    """An engine of the pool: its label, its link, and which prompts its present instance has seen.

    `moved` counts the requests that it lost or refused and another engine was asked for.
    """

    label: str
    client: EngineClient
    seen: SeenPrefixes = field(default_factory=SeenPrefixes)
    instance: str = ""
    moved: int = 0

    def look(self) -> None:
        """Forget what an engine that restarted knew."""
        status = self.client.status
        if status is not None and status.instance != self.instance:
            self.instance = status.instance
            self.seen.clear()

    @property
    def is_hampered(self) -> bool:
        """Whether the engine is not there, slow, or lacks experts."""
        status = self.client.status
        return status is None or status.state != "ready"

    @property
    def books(self) -> Books:
        """What there is to tell of the engine."""
        client = self.client
        return Books(client.ledger, client.late_tokens, self.moved, client.status, client.silence_s)


class EnginePool:
    """An `Engine` of one or more attention services.

    Args:
        clients: their links; labelled by their places, from 0.
        patience_s: how long a request of which nothing has come waits for an engine that says nothing at all,
            when another one is well. An engine's socket is read by a thread of its own, so that one answers
            in a long step too, and while it loads: silence means that the whole process stands still.
    """

    def __init__(self, clients: Sequence[EngineClient], *, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self._seats = [Seat(str(number), client) for number, client in enumerate(clients)]
        self._is_closing = False

    @property
    def status(self) -> EngineStatus | None:
        """Of all together, see `total_status`."""
        return total_status(self.statuses)

    @property
    def statuses(self) -> dict[str, EngineStatus | None]:
        """What each engine last said, by label."""
        return {seat.label: seat.client.status for seat in self._seats}

    @property
    def is_ready(self) -> bool:
        """Whether some engine accepts requests now."""
        return any(seat.client.is_ready for seat in self._seats)

    @property
    def in_flight(self) -> int:
        """Requests that are not answered in full yet."""
        return sum(seat.client.in_flight for seat in self._seats)

    async def start(self) -> None:
        """Connect; returns at once, whether or not engines are there."""
        for seat in self._seats:
            await seat.client.start()

    async def close(self) -> None:
        """Abort what runs and disconnect."""
        self._is_closing = True
        await asyncio.gather(*(seat.client.close() for seat in self._seats))

    async def give_up(self, reason: str) -> None:
        """Abort what runs: each request fails with `reason`, and is asked of no other engine."""
        self._is_closing = True
        for seat in self._seats:
            await seat.client.give_up(reason)

    async def stats(self) -> EngineStats | None:
        """The counters of all, see `total_stats`; of those that do not answer, their last."""
        await asyncio.gather(*(seat.client.refresh() for seat in self._seats))
        return total_stats({seat.label: seat.books for seat in self._seats})

    @contextlib.asynccontextmanager
    async def generate(self, message: Generate) -> AsyncIterator[Answer]:
        """Start a request; see `Engine.generate`."""
        async with contextlib.AsyncExitStack() as stack:
            answer = PooledAnswer(self, message, stack)
            await answer.start()
            yield answer

    def choose(self, keys: Sequence[bytes], tried: Sequence[Seat]) -> Seat | None:
        """The best engine for a prompt of these blocks, of those that take requests and were not tried."""
        seats = [seat for seat in self._seats if seat.client.is_ready and seat not in tried]
        if not seats:
            return None
        for seat in seats:
            seat.look()
        least = min(seat.client.in_flight for seat in seats)

        def rank(seat: Seat) -> tuple[bool, int, int, int]:
            known = seat.seen.match(keys)
            is_near = seat.client.in_flight <= least + MOST_AHEAD
            saved = known if 2 * known >= len(keys) and is_near else 0
            return seat.is_hampered, -saved, seat.client.in_flight, len(seat.seen)

        return min(seats, key=rank)

    def retries(self, tried: Sequence[Seat]) -> bool:
        """Whether another engine may be asked."""
        return not self._is_closing and self.choose((), tried) is not None

    def is_better_left(self, seat: Seat, tried: Sequence[Seat]) -> bool:
        """Whether an engine has been silent for long, and one that was not tried is well."""
        if self._is_closing or seat.client.silence_s <= self.patience_s:
            return False
        other = self.choose((), tried)
        return other is not None and not other.is_hampered

    @property
    def is_single(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self._seats) == 1

    def require_any(self) -> Seat:
        """Some engine that refuses in its own words, when none takes requests."""
        return self._seats[0]


class PooledAnswer:
    """An answer, by the first engine that begins to give it.

    Args:
        pool: chooses the engines.
        message: the request. A further engine gets what is left of its deadline.
        stack: ends the engines' streams.
    """

    def __init__(self, pool: EnginePool, message: Generate, stack: contextlib.AsyncExitStack) -> None:
        self._pool = pool
        self._message = message
        self._stack = stack
        self._started = time.monotonic()
        self._keys = [] if pool.is_single else block_keys(message.prompt_ids)
        self._tried: list[Seat] = []
        self._ids: list[int] = []
        self._has_begun = False
        self._stream: Answer

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self._stream.is_over

    async def start(self) -> None:
        """Ask the best engine, or the next best.

        Raises:
            PeerError: none takes requests.
        """
        seat = self._pool.choose(self._keys, self._tried) or self._pool.require_any()
        self._tried.append(seat)
        try:
            self._stream = await self._stack.enter_async_context(seat.client.generate(self._remaining()))
        except PeerError:
            if not self._pool.retries(self._tried):
                raise
            seat.moved += 1
            await self.start()
        else:
            seat.seen.expect(self._keys)
            self._stack.callback(seat.seen.settle, self._keys)

    def __aiter__(self) -> PooledAnswer:
        return self

    async def __anext__(self) -> TokenBatch:
        while True:
            try:
                batch = await self._next()
            except (PeerError, OverloadedError) as error:
                if not self._may_move:
                    raise
                await self._move(str(error))
                continue
            if _is_given_up(batch) and self._may_move:
                await self._move("it gave the request up")
                continue
            self._note(batch)
            return batch

    async def _next(self) -> TokenBatch:
        """The engine's next batch.

        Raises:
            PeerError: the engine is silent, it sent nothing yet, and another one is well.
        """
        if self._has_begun or self._pool.is_single:
            return await anext(self._stream)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pool.patience_s / _LOOKS):
                    return await anext(self._stream)
            seat = self._tried[-1]
            if self._pool.is_better_left(seat, self._tried):
                raise PeerError(f"the engine has said nothing for {seat.client.silence_s:.0f} s")

    @property
    def _may_move(self) -> bool:
        """Whether nothing was sent yet that cannot be asked again, and another engine takes requests."""
        return not self._has_begun and self._pool.retries(self._tried)

    async def _move(self, reason: str) -> None:
        seat = self._tried[-1]
        _log.warning("asking another engine", engine=seat.label, reason=reason)
        seat.moved += 1
        await self._stack.aclose()  # what is lost must not count as work of its engine
        await self.start()

    def _note(self, batch: TokenBatch) -> None:
        """What was sent cannot be asked again; and the next turn will begin with this answer."""
        is_first, self._has_begun = not self._has_begun, True
        if self._pool.is_single or _is_given_up(batch):
            return
        seen = self._tried[-1].seen
        if is_first:
            seen.add(self._keys)
        self._ids += batch.ids
        if batch.finish_reason is not None:
            seen.add(block_keys([*self._message.prompt_ids, *self._ids]))

    def _remaining(self) -> Generate:
        if self._message.deadline is None or len(self._tried) == 1:
            return self._message
        left = self._message.deadline - (time.monotonic() - self._started)
        return msgspec.structs.replace(self._message, deadline=max(left, _LEAST_DEADLINE_S))


def _is_given_up(batch: TokenBatch) -> bool:
    """Whether an engine ended the request of its own accord, with nothing to show for it."""
    return batch.finish_reason == "abort" and not batch.ids and not batch.prompt_logprobs
