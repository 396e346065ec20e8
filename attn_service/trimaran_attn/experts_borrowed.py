"""Routed experts computed in this process, on a CPU, from the memory of the expert service.

Where both have the same cores they can only take turns, with an interpreter and sleeping threads between
them. So this process maps the packed weights that the service keeps, and computes as the service would; all
layers of a step can then be one native call (`model.native_layers`). The service goes on to own the weights
and to keep the books; if it goes away, nothing is lost here.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from trimaran.errors import KernelError, PeerError, TrimaranError
from trimaran.mapped_file import map_file, page_border, populate_for_reading, wish_huge_pages
from trimaran.spec import ModelSpec
from trimaran.telemetry import Log
from trimaran.wire import Borrowed, LentMatrix, LentWeights, Ready
from trimaran_kernels import ExpertEngine, ThreadPool
from trimaran_kernels.hop import CallGate

from trimaran_attn.experts_client import ExpertsClient
from trimaran_attn.experts_client.statuses import status_error
from trimaran_attn.experts_link import RemoteExperts, TimedTicket
from trimaran_attn.metrics import Meter

Bytes = NDArray[np.uint8]
_log = Log(__name__)


class BorrowedExperts:
    """`Experts` and `NativeExperts`: here once `borrow` has succeeded, else by the expert service.

    Args:
        remote: the way to the service. link: its client.
        meter: takes `attention_wait_on_experts_seconds`, a sample per layer and step.
        spec: of the model.
        pool: threads of the attention, which then compute experts too.
        max_tokens: of one call: of the longest step.
    """

    def __init__(
        self,
        remote: RemoteExperts,
        link: ExpertsClient,
        meter: Meter,
        spec: ModelSpec,
        pool: ThreadPool,
        *,
        max_tokens: int,
    ) -> None:
        self._remote = remote
        self._link = link
        self._meter = meter
        self._spec = spec
        self._pool = pool
        self._max_tokens = max_tokens
        self._lender = ""
        self._gate: CallGate | None = None

    @property
    def calls(self) -> CallGate | None:
        """See `NativeExperts.calls`."""
        return self._gate

    def took(self, seconds: Sequence[float]) -> None:
        """See `NativeExperts.took`."""
        for one in seconds:
            self._meter.observe("attention_wait_on_experts_seconds", one)

    def error(self, status: int, layer: int) -> TrimaranError:
        """See `NativeExperts.error`."""
        return status_error(status, self._lender, layer)

    def borrow(self) -> bool:
        """Compute here from now on, if the service that `link` is connected to lends its weights.

        Returns:
            Whether it is so; the log says why not.
        """
        lender = self._link.lender()
        if lender is None:
            _log.info("the expert service computes the experts", reason="no shard lends all of them")
            return False
        try:
            gate = self._open(self._lent_by(lender), lender.isa)
        except (OSError, PeerError, KernelError) as error:
            _log.info("the expert service computes the experts", reason=str(error))
            return False
        self._gate, self._lender = gate, lender.shard
        self._link.borrow(_books(gate))
        return True

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor | TimedTicket:
        """See `Experts.submit`; what is computed here is done at once, and the ticket."""
        gate = self._gate
        if gate is None:
            return self._remote.submit(layer, x, ids, weights)
        start = time.perf_counter()
        values = x.float().contiguous()
        y = torch.empty_like(values)
        status = gate.run(
            layer, values.numpy(), ids.contiguous().numpy(), weights.contiguous().numpy(), y.numpy()
        )
        if status != 0:
            raise self.error(status, layer)
        self.took([time.perf_counter() - start])
        return y

    def wait(self, ticket: Tensor | TimedTicket) -> Tensor:
        """See `Experts.wait`."""
        return ticket if isinstance(ticket, Tensor) else self._remote.wait(ticket)

    def _lent_by(self, lender: Ready) -> LentWeights:
        """What it lends; raises PeerError if that is of no use here."""
        lent = lender.lent
        if lent is None:
            raise PeerError("it keeps them in no file")
        if set(lent.cpus) != set(self._pool.cpus):
            ours = _numbers(self._pool.cpus)
            raise PeerError(f"it computes on other CPUs: {_numbers(lent.cpus)} beside {ours}")
        moe_layers = range(self._spec.n_dense_layers, self._spec.n_layers)
        if set(lent.layers) != set(moe_layers):
            raise PeerError(f"it lends layers {_numbers(lent.layers)} of {_numbers(moe_layers)}")
        return lent

    def _open(self, lent: LentWeights, isa: str) -> CallGate:
        moe = self._spec.moe
        file = _map(lent)
        engine = ExpertEngine(
            self._pool,
            self._spec.hidden_size,
            moe.intermediate_size,
            moe.n_experts,
            moe.top_k,
            max_tokens=self._max_tokens,
            isa=isa,
        )
        for layer, matrices in lent.layers.items():
            gate, up, down = ((matrix.type, _part(file, matrix), matrix.packed) for matrix in matrices)
            engine.add_layer(layer, gate, up, down, 0, moe.n_experts)
        _log.info(
            "experts are computed here",
            borrowed=lent.path,
            gigabytes=round(file.size / 1e9, 3),
            isa=engine.isa,
        )
        return CallGate(engine, gathers=False, rests=False)


def _map(lent: LentWeights) -> Bytes:
    """The lent file, every page of it; the mapping holds the file's shared lock."""
    fd = os.open(lent.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) != (lent.device, lent.inode):
            raise PeerError(f"{lent.path} is not the file that was lent")
        if info.st_uid != os.geteuid() or not stat.S_ISREG(info.st_mode):
            raise PeerError(f"{lent.path} is not a file of this user")
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        file = map_file(fd, info.st_size, writable=False, border=page_border(fd))
    finally:
        os.close(fd)
    wish_huge_pages(file)
    populate_for_reading(file, lambda _: None, lambda: False)
    return file


def _part(file: Bytes, matrix: LentMatrix) -> Bytes:
    end = matrix.offset + matrix.nbytes
    if not 0 <= matrix.offset <= end <= file.size:
        raise PeerError(f"bytes {matrix.offset} to {end} were lent of a file of {file.size}")
    return file[matrix.offset : end]


def _books(gate: CallGate) -> Callable[[], Borrowed]:
    name = secrets.token_hex(8)
    return lambda: Borrowed(
        books=name,
        counters=gate.counters(),
        expert_tokens=gate.expert_tokens(),
        layer_times=gate.latencies(),
    )


def _numbers(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
