"""The routed experts of all shards, as one: submit a layer, wait for the sum."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from trimaran.arena import Arena, ArenaDims, ElementType, arena_directory, remove_leftovers
from trimaran.channel import ChannelOptions, CurveKeys
from trimaran.config import ExpertsConfig
from trimaran.errors import OverloadedError, PeerError, TrimaranError
from trimaran.run_dir import experts_endpoint
from trimaran.telemetry import Log
from trimaran.wire import Borrowed, Ready, Status

from trimaran_attn.experts_client.calls import Calls, DoorbellCalls, MailCalls
from trimaran_attn.experts_client.coverage import check_coverage
from trimaran_attn.experts_client.link import (
    LinkOptions,
    LinkState,
    ModelFacts,
    ShardLink,
    ShardStatus,
)
from trimaran_attn.experts_client.statuses import status_error
from trimaran_attn.experts_client.tickets import Ticket, Traffic
from trimaran_attn.experts_client.transports import Batch, SharedArena, Vectors

Progress = Callable[[str, float], None]
"""Takes one line for people and the fraction of the weights that is read, 0 to 1."""

_KEEPER_S = 0.5
_SAY_EVERY_S = 3.0
_INT32 = np.dtype(np.int32)  # compared to a type, an array's dtype makes one of these each time
_FLOAT32 = np.dtype(np.float32)
_log = Log(__name__)


class ExpertsClient:
    """Every shard of the expert service. Use it from one thread.

    Args:
        config: notifier, endpoints, timeouts and element type ("auto" is f32).
        facts: what this process loaded.
        run_dir: where the shard of this host listens, and where arenas go if it is on a tmpfs.
        max_tokens: tokens of one call; larger batches are cut.
        n_slots: calls in flight per shard.
        device_slots: slots beside these, for a GPU.

    Raises:
        PeerError: the shared memory has no room for the arenas; better known before the weights are read.
    """

    def __init__(
        self,
        config: ExpertsConfig,
        facts: ModelFacts,
        run_dir: str | Path,
        *,
        max_tokens: int = 512,
        n_slots: int = 4,
        device_slots: int = 0,
    ) -> None:
        self._config = config
        self._run_dir = Path(run_dir)
        self._facts = facts
        self._layers = frozenset(facts.layers)
        self._n_slots = n_slots
        dtype: ElementType = "f32" if config.dtype == "auto" else config.dtype
        self._dims = ArenaDims(facts.hidden_size, facts.top_k, max_tokens, device_slots + n_slots, dtype)
        curve = CurveKeys.load(config.curve_key) if config.curve_key else None
        options = LinkOptions(
            config.notifier, self._dims, self._run_dir, ChannelOptions(curve=curve), device_slots
        )
        endpoints = config.endpoints or (config.listen or experts_endpoint(run_dir),)
        if config.notifier != "tcp":
            _try_arenas(self._dims, arena_directory(self._run_dir), len(endpoints))
        self._links = [ShardLink(endpoint, facts, options) for endpoint in endpoints]
        self._received_bytes = self._dims.hidden_size * self._dims.element.itemsize  # of one token
        self._sent_bytes = self._received_bytes + 8 * facts.top_k
        self._calls: Calls = (
            DoorbellCalls(self._links) if config.notifier == "doorbell" else MailCalls(self._links)
        )
        self._traffic = Traffic()
        self._open: set[Ticket] = set()
        self._borrows = False
        self._stopped = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="experts-keeper", daemon=True)

    def connect(self, on_progress: Progress | None = None) -> None:
        """Wait until every shard is ready. A shard that reads its weights may take as long as it needs.

        Args:
            on_progress: is told every few seconds what is waited for.

        Raises:
            PeerError: a shard did not appear within `connect_timeout_s`.
            PeerMismatchError: a shard loaded another model, or the shards do not make up the whole model.
        """
        while not self._all_ready():  # one may be lost while another is awaited
            for link in self._links:
                self._await(link, on_progress or _log_progress)
        check_coverage(
            {link.endpoint: link.ready for link in self._links if link.ready is not None},
            self._facts.n_experts,
        )
        self._keeper.start()

    def submit(self, layer: int, x: Vectors, ids: NDArray[np.int32], weights: NDArray[np.float32]) -> Ticket:
        """Start one layer on all shards.

        Args:
            layer: index of a MoE layer in the model.
            x: [n, hidden] float32, or uint16 holding bf16 bits if the hop's element type is bf16. It may be
                written to again after `wait`: what finds no free slot is sent from there.
            ids: int32 [n, top_k]; -1 skips this place, whatever its weight.
            weights: float32 [n, top_k].

        Raises:
            ValueError: an array of another shape or type, or a layer without experts.
            PeerError: a shard is away.
        """
        batch = self._batch(layer, x, ids, weights)
        ticket = Ticket(batch, time.monotonic() + self._config.call_timeout_s)
        try:
            self._advance(ticket)
        except BaseException:
            ticket.abandon()
            raise
        self._open.add(ticket)
        return ticket

    def wait(self, ticket: Ticket) -> NDArray[np.float32]:
        """The weighted sum over each token's experts, float32 [n, hidden].

        Raises:
            PeerError: a shard went away or did not answer within `call_timeout_s`.
            KernelError: a shard refused the call.
            OverloadedError: other tickets hold all slots; wait for them first.
            ValueError: the ticket has been waited for.
        """
        if ticket not in self._open:
            raise ValueError("this ticket has been waited for")
        self._open.discard(ticket)
        y = np.empty(ticket.batch.x.shape, np.float32)
        try:
            while ticket.flights or not ticket.is_sent:
                if not ticket.flights:
                    self._advance(ticket)
                self._collect(ticket, y)
                if not ticket.is_sent:
                    self._advance(ticket)
        except BaseException:
            ticket.abandon()
            raise
        return y

    def shared_arenas(self) -> tuple[SharedArena, ...]:
        """Every shard's arena, for a GPU; the same objects as before unless a shard was lost meanwhile.

        Raises:
            PeerError: a shard is away.
        """
        return tuple(link.shared_arena() for link in self._links)

    def count_tokens(self, n_tokens: int) -> None:
        """A GPU had so many tokens computed by every shard, each of them once for a layer."""
        self._traffic.sent += self._sent_bytes * n_tokens
        self._traffic.received += self._received_bytes * n_tokens

    def timed_out(self, shard: int) -> PeerError:
        """A shard did not answer a GPU in time: it is given up, and said hello to anew."""
        link = self._links[shard]
        link.lose("did not answer in time")
        return PeerError(f"expert service {link.endpoint} did not answer in time")

    def went_away(self, shard: int) -> PeerError:
        """The error for a shard that was lost while a GPU waited."""
        return PeerError(f"expert service {self._links[shard].endpoint} went away during a step")

    def refused(self, shard: int, layer: int, status: int) -> TrimaranError:
        """The error for a shard's answer other than OK to a GPU."""
        link = self._links[shard]
        if status == Status.SHUTTING_DOWN:
            link.lose("is shutting down")
        return status_error(status, link.endpoint, layer)

    def settle(self) -> None:
        """Wait out the calls that a step left behind when it broke off: the next one needs their slots.

        Bounded by the calls' own deadlines; what they answer is dropped.
        """
        while self._open:
            ticket = next(iter(self._open))
            ticket.sent, ticket.started = len(ticket.batch), True
            with contextlib.suppress(TrimaranError):
                self.wait(ticket)

    def lender(self) -> Ready | None:
        """The shard whose weights may be borrowed: one that is alone, and shares its memory."""
        ready = self._links[0].ready if len(self._links) == 1 else None
        return ready if ready is not None and ready.lent is not None else None

    def borrow(self, books: Callable[[], Borrowed]) -> None:
        """This process computes from the lender's weights itself from now on, whatever becomes of the lender.

        Args:
            books: says what was computed, for the lender's statistics.
        """
        self._borrows = True
        for link in self._links:
            link.borrow(books)

    def ready(self) -> bool:
        """Whether layers can be computed now; a shard that went away comes back by itself."""
        return self._borrows or self._all_ready()

    def statuses(self) -> list[ShardStatus]:
        """How every link is."""
        return [link.status() for link in self._links]

    def stats(self) -> dict[str, dict[str, float]]:
        """The shards' counters and gauges by shard name, at most about a second old; ours about them too."""
        known = ((link, link.stats) for link in self._links)
        return {
            stats.shard: {
                **stats.counters,
                **stats.gauges,
                **self._traffic.counters(),
                "expert_service_up": float(link.state is LinkState.READY),
            }
            for link, stats in known
            if stats is not None
        }

    def expert_tokens(self) -> dict[int, list[int]]:
        """By layer, tokens routed to each expert; as old as `stats`.

        Shards that hold columns of the same expert are each asked for each of its tokens: the one with the
        first column counts.
        """
        totals: dict[int, list[int]] = {}
        for link in self._links:
            if link.stats is None or link.part is None or link.part.columns[0] > 0:
                continue
            for layer, counts in link.stats.expert_tokens.items():
                seen = totals.get(layer)
                totals[layer] = counts if seen is None else [a + b for a, b in zip(seen, counts, strict=True)]
        return totals

    def close(self) -> None:
        """Say goodbye to the shards and remove the arenas. May be called twice."""
        self._stopped.set()
        if self._keeper.ident is not None:
            self._keeper.join()
        for link in self._links:
            link.close()

    def __enter__(self) -> ExpertsClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _all_ready(self) -> bool:
        return all(link.state is LinkState.READY for link in self._links)

    def _await(self, link: ShardLink, on_progress: Progress) -> None:
        timeout_s = self._config.connect_timeout_s
        deadline, next_word = time.monotonic() + timeout_s, 0.0
        while link.state is not LinkState.READY:
            for other in self._links:
                other.pump(0.05 if other is link else 0)
            now = time.monotonic()
            if link.state is LinkState.REFUSED:
                raise link.refusal_error()
            if link.state is LinkState.LOADING:
                deadline = now + timeout_s
            if now > deadline:
                raise PeerError(
                    f"no expert service at {link.endpoint} after {timeout_s:.0f} s",
                    remedy="start it with `trimaran experts`, or set experts.endpoints",
                )
            if now >= next_word:
                next_word = now + _SAY_EVERY_S
                status = link.status()
                on_progress(f"waiting for expert service {status.endpoint}: {status.detail}", status.progress)

    def _keep(self) -> None:
        while not self._stopped.wait(_KEEPER_S):
            for link in self._links:
                try:
                    link.pump(0)
                except Exception as error:  # nobody else reconnects an idle link: go on
                    _log.error("cannot reconnect", endpoint=link.endpoint, reason=str(error))

    def _batch(self, layer: int, x: Vectors, ids: NDArray[np.int32], weights: NDArray[np.float32]) -> Batch:
        if layer not in self._layers:
            raise ValueError(f"layer {layer} has no routed experts")
        n = len(x)
        routes = (n, self._dims.top_k)
        if x.shape != (n, self._dims.hidden_size) or ids.shape != routes or weights.shape != routes:
            raise ValueError(f"shapes {x.shape}, {ids.shape}, {weights.shape} are not those of {n} tokens")
        if ids.dtype != _INT32 or weights.dtype != _FLOAT32:
            raise ValueError(f"ids are {ids.dtype}, need int32; weights are {weights.dtype}, need float32")
        if x.dtype not in (_FLOAT32, self._dims.element):
            raise ValueError(f"x is {x.dtype}, need {self._dims.element}")
        if not (x.flags.c_contiguous and ids.flags.c_contiguous and weights.flags.c_contiguous):
            ids, weights = np.ascontiguousarray(ids), np.ascontiguousarray(weights)
            x = x.copy("C")
        return Batch(layer, x, ids, weights)

    def _advance(self, ticket: Ticket) -> None:
        """Submit as many of the ticket's tokens as every shard has slots for."""
        step = self._dims.max_tokens
        while not ticket.is_sent:
            start, stop = ticket.sent, min(ticket.sent + step, len(ticket.batch))
            flight = self._calls.start(ticket.batch.part(start, stop))
            if flight is None:
                return
            ticket.flights.append((flight, start, stop))
            ticket.sent, ticket.started = stop, True
            self._traffic.sent += self._sent_bytes * (stop - start)

    def _collect(self, ticket: Ticket, y: NDArray[np.float32]) -> None:
        """Wait for the oldest call of the ticket; its tokens' part of y is the answer."""
        if not ticket.flights:
            raise OverloadedError(f"all {self._n_slots} slots of the experts are in use")
        flight, start, stop = ticket.flights[0]
        flight.finish(y[start:stop], ticket.deadline)
        ticket.flights.popleft()
        self._traffic.received += self._received_bytes * (stop - start)


def _try_arenas(dims: ArenaDims, directory: Path, count: int) -> None:
    """Reserve and give back as many arenas as there will be, in place of those that killed processes left."""
    remove_leftovers(directory)
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(Arena(dims, directory))


def _log_progress(detail: str, progress: float) -> None:
    _log.info(detail, progress=round(progress, 3))
