"""Experts computed by a client from the memory of a real expert service."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec.structs
import numpy as np
import pytest
import torch
from trimaran.config import Config
from trimaran.errors import KernelError
from trimaran.wire import LentMatrix, LentWeights, Ready, Record, Recorded
from trimaran_attn import experts_borrowed
from trimaran_attn.experts_borrowed import BorrowedExperts
from trimaran_attn.experts_client import ExpertsClient
from trimaran_attn.experts_link import RemoteExperts
from trimaran_attn.metrics import Meter
from trimaran_experts.asking import ServiceLine
from trimaran_kernels import ThreadPool, usable_cpus

LAYER = 1
KEPT = {"precision": "int8", "experts.store": "tmpfs"}

Borrow = Callable[..., BorrowedExperts]


@pytest.fixture
def borrow(model: Any, make_client: Callable[..., ExpertsClient]) -> Borrow:
    """A client's experts, connected; `.link` is the client."""

    def make(cpus: list[int] | None = None, max_tokens: int = 64) -> BorrowedExperts:
        link = make_client()
        meter = Meter()
        pool = ThreadPool(cpus or usable_cpus(1))
        experts = BorrowedExperts(
            RemoteExperts(link, meter), link, meter, model.spec, pool, max_tokens=max_tokens
        )
        link.connect()
        return experts

    return make


def computed(experts: BorrowedExperts, batch: tuple[np.ndarray, ...], layer: int = LAYER) -> torch.Tensor:
    return experts.wait(experts.submit(layer, *map(torch.from_numpy, batch)))


def test_a_client_computes_what_the_service_would(
    model: Any, start_experts: Any, directory: Path, borrow: Borrow
) -> None:
    start_experts(**KEPT, **{"experts.store_dir": str(directory)})
    experts = borrow()
    batch = model.batch(5)
    assert experts.calls is None
    there = computed(experts, batch)
    assert experts.borrow()
    assert experts.calls is not None
    here = computed(experts, batch)
    assert torch.equal(here, there)
    assert experts.calls.counters()["calls"] == 1


def test_the_longest_step_is_computed_in_one_call(
    model: Any, start_experts: Any, directory: Path, borrow: Borrow
) -> None:
    start_experts(**KEPT, **{"experts.store_dir": str(directory)})
    experts = borrow(max_tokens=4100)
    assert experts.borrow()
    assert len(computed(experts, model.batch(4100))) == 4100
    assert experts.calls is not None
    assert experts.calls.counters()["calls"] == 1


def test_it_goes_on_when_the_service_is_killed_and_comes_back(
    model: Any, start_experts: Any, directory: Path, borrow: Borrow, wait_until: Any
) -> None:
    options = {**KEPT, "experts.store_dir": str(directory)}
    service = start_experts(**options)
    experts = borrow()
    link = experts._link
    assert experts.borrow()
    batch = model.batch(3)
    expected = computed(experts, batch)
    service.kill()
    wait_until(lambda: link.statuses()[0].detail != "ready")
    for path in directory.iterdir():
        path.unlink()  # as a purge does
    assert link.ready(), "what is computed here needs nobody"
    assert torch.equal(computed(experts, batch), expected)
    start_experts(**options)
    wait_until(lambda: link.statuses()[0].detail == "ready", 20)
    assert torch.equal(computed(experts, batch), expected)


def test_the_service_keeps_the_books(
    model: Any, start_experts: Any, directory: Path, borrow: Borrow, wait_until: Any
) -> None:
    service = start_experts(**KEPT, **{"experts.store_dir": str(directory)})
    experts = borrow()
    computed(experts, model.batch(2))
    assert experts.borrow()
    batch = model.batch(4)
    computed(experts, batch)

    def tokens() -> float:
        return experts._link.stats().get("0", {}).get("expert_tokens_total", 0)

    wait_until(lambda: tokens() == 6)
    routed = experts._link.expert_tokens()[LAYER]
    both = np.concatenate([model.batch(2)[1].ravel(), batch[1].ravel()])
    np.testing.assert_array_equal(routed, np.bincount(both, minlength=len(routed)))
    assert service.process.poll() is None


def test_calls_that_do_not_come_by_cannot_be_recorded(
    start_experts: Any, directory: Path, borrow: Borrow, run_dir: Path, tmp_path: Path
) -> None:
    start_experts(**KEPT, **{"experts.store_dir": str(directory)})
    experts = borrow()
    assert experts.borrow()
    answer = record(run_dir, tmp_path / "calls.rec")
    assert "attn.experts=service" in answer.error
    assert not (tmp_path / "calls.rec").exists()


def record(run_dir: Path, path: Path) -> Any:
    """What the service says to a wish to record, once it has heard of the borrower."""
    with closing(ServiceLine(Config(run_dir=str(run_dir)), "0")) as line:
        return line.ask(Record(action="start", path=str(path), max_bytes=1 << 20), Recorded)


@pytest.mark.parametrize("why", ["private store", "CPUs of its own", "fewer CPUs"])
def test_weights_that_cannot_be_borrowed_are_computed_there(
    model: Any, start_experts: Any, directory: Path, borrow: Borrow, why: str
) -> None:
    private = why == "private store"
    cpus = sorted(os.sched_getaffinity(0))
    if not private and len(cpus) < 2:
        pytest.skip("needs two CPUs")
    store = {"experts.store": "private"} if private else {"experts.store_dir": str(directory)}
    start_experts(**{**KEPT, **store, "experts.cpus": str(cpus[0])})
    experts = borrow({"CPUs of its own": [cpus[-1]], "fewer CPUs": cpus}.get(why))
    assert not experts.borrow()
    assert experts.calls is None
    assert computed(experts, model.batch(2)).isfinite().all()


def test_what_the_kernels_refuse_is_an_error_that_names_the_service(
    model: Any, start_experts: Any, directory: Path, borrow: Borrow
) -> None:
    start_experts(**KEPT, **{"experts.store_dir": str(directory)})
    experts = borrow()
    assert experts.borrow()
    x, ids, weights = model.batch(2)
    x[1, 3] = np.nan
    with pytest.raises(KernelError, match=f"expert service 0 refused layer {LAYER}: .*NaN"):
        computed(experts, (x, ids, weights))
    with pytest.raises(KernelError, match="no such layer"):
        computed(experts, model.batch(2), layer=0)


def other_file(lent: LentWeights, path: Path) -> LentWeights:
    path.write_bytes(Path(lent.path).read_bytes())
    return msgspec.structs.replace(lent, path=str(path))


def beyond_the_end(lent: LentWeights, _: Path) -> LentWeights:
    far = LentMatrix(8, Path(lent.path).stat().st_size - 1, 2, packed=True)
    return msgspec.structs.replace(lent, layers=dict.fromkeys(lent.layers, (far, far, far)))


def too_small(lent: LentWeights, _: Path) -> LentWeights:
    few = LentMatrix(8, 8192, 64, packed=True)
    return msgspec.structs.replace(lent, layers=dict.fromkeys(lent.layers, (few, few, few)))


def a_link(lent: LentWeights, path: Path) -> LentWeights:
    path.symlink_to(lent.path)
    return msgspec.structs.replace(lent, path=str(path))


def nothing(lent: LentWeights, path: Path) -> LentWeights:
    return msgspec.structs.replace(lent, path=str(path))


def a_layer_less(lent: LentWeights, _: Path) -> LentWeights:
    return msgspec.structs.replace(lent, layers={LAYER: lent.layers[LAYER]})


@pytest.mark.parametrize("change", [other_file, beyond_the_end, too_small, a_link, nothing, a_layer_less])
def test_a_lender_that_says_nonsense_computes_itself(
    change: Callable[[LentWeights, Path], LentWeights],
    start_experts: Any,
    directory: Path,
    tmp_path: Path,
    borrow: Borrow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start_experts(**KEPT, **{"experts.store_dir": str(directory)})
    experts = borrow()
    lender = experts._link.lender()
    assert isinstance(lender, Ready)
    assert lender.lent is not None
    wrong = msgspec.structs.replace(lender, lent=change(lender.lent, tmp_path / "other"))
    with monkeypatch.context() as patch:
        patch.setattr(experts._link, "lender", lambda: wrong)
        assert not experts.borrow()
    assert experts.calls is None
    assert experts.borrow()


def test_a_file_that_is_being_rebuilt_is_not_borrowed(
    start_experts: Any, directory: Path, borrow: Borrow, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_experts(**KEPT, **{"experts.store_dir": str(directory)})
    experts = borrow()

    def taken(*_: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(experts_borrowed.fcntl, "flock", taken)
        assert not experts.borrow()
