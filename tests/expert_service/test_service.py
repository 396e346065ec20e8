"""Attention side and expert service as real processes: results, several shards, statistics, goodbyes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trimaran.errors import KernelError, OverloadedError, PeerMismatchError
from trimaran.run_dir import experts_endpoint
from trimaran_attn.experts_client import ExpertsClient

MakeClient = Callable[..., ExpertsClient]


def assert_close(y: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    assert y.dtype == np.float32
    assert y.shape == expected.shape
    assert np.abs(y - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=1e-9)


@pytest.mark.parametrize("notifier", ["doorbell", "zmq", "tcp"])
def test_every_notifier_gives_the_reference(
    model, shared_dir: Path, make_client: MakeClient, notifier: str
) -> None:
    client = make_client(at=shared_dir, notifier=notifier)
    client.connect()
    for layer in model.facts.layers:
        for n in (0, 1, 5, 8, 21):  # 21 is cut in three
            batch = model.batch(n, seed=n)
            assert_close(client.wait(client.submit(layer, *batch)), model.expected(layer, *batch))


@pytest.mark.parametrize("notifier", ["doorbell", "zmq", "tcp"])
def test_skipped_places_add_nothing(model, shared_dir: Path, make_client: MakeClient, notifier: str) -> None:
    client = make_client(at=shared_dir, notifier=notifier)
    client.connect()
    x, ids, weights = model.batch(11)
    skipped = np.random.default_rng(1).random(ids.shape) < 0.4
    skipped[[4, 9]] = True
    expected = model.expected(2, x, ids, np.where(skipped, 0, weights))
    ids[skipped], weights[skipped] = -1, np.nan
    y = client.wait(client.submit(2, x, ids, weights))
    assert_close(y, expected)
    assert not y[[4, 9]].any()


@pytest.mark.parametrize("notifier", ["doorbell", "zmq", "tcp"])
def test_bf16_on_the_hop(model, shared_dir: Path, make_client: MakeClient, notifier: str) -> None:
    client = make_client(at=shared_dir, notifier=notifier, dtype="bf16")
    client.connect()
    x, ids, weights = model.batch(6)
    rounded = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    bits = (rounded.view(np.uint32) >> 16).astype(np.uint16)
    expected = model.expected(1, rounded, ids, weights)
    for given in (bits, rounded):
        assert_close(client.wait(client.submit(1, given, ids, weights)), expected, tolerance=1e-2)


@pytest.mark.parametrize("notifier", ["doorbell", "zmq", "tcp"])
def test_several_tickets_at_once(model, shared_dir: Path, make_client: MakeClient, notifier: str) -> None:
    client = make_client(at=shared_dir, notifier=notifier, n_slots=3)
    client.connect()
    batches = [model.batch(4, seed) for seed in range(3)]
    tickets = [client.submit(2, *batch) for batch in batches]
    waiting = client.submit(2, *batches[0])
    with pytest.raises(OverloadedError, match="3 slots"):
        client.wait(waiting)
    for ticket, batch in reversed(list(zip(tickets, batches, strict=True))):
        assert_close(client.wait(ticket), model.expected(2, *batch))
    assert_close(client.wait(client.submit(2, *batches[1])), model.expected(2, *batches[1]))


def test_a_failed_call_gives_its_slots_back(model, shared_dir: Path, make_client: MakeClient) -> None:
    client = make_client(at=shared_dir, max_tokens=2, n_slots=2)
    client.connect()
    x, ids, weights = model.batch(4)
    x[0, 0] = np.nan
    for _ in range(5):
        with pytest.raises(KernelError, match="NaN"):
            client.wait(client.submit(1, x, ids, weights))
    batch = model.batch(4)
    assert_close(client.wait(client.submit(1, *batch)), model.expected(1, *batch))


def test_calls_that_nobody_waits_for_give_their_slots_back(
    model, shared_dir: Path, make_client: MakeClient
) -> None:
    client = make_client(at=shared_dir, max_tokens=2, n_slots=2)
    client.connect()
    batch = model.batch(3)
    for _ in range(5):
        client.submit(1, *batch)
        client.settle()
        assert_close(client.wait(client.submit(2, *batch)), model.expected(2, *batch))


def test_bad_arguments_are_refused_here(model, shared_dir: Path, make_client: MakeClient) -> None:
    client = make_client(at=shared_dir)
    client.connect()
    x, ids, weights = model.batch(2)
    for layer, arguments in (
        (0, (x, ids, weights)),
        (1, (x[:, 1:], ids, weights)),
        (1, (x, ids[:1], weights)),
        (1, (x, ids.astype(np.int64), weights)),
        (1, (x, ids, weights.astype(np.float64))),
        (1, (x.astype(np.float64), ids, weights)),
    ):
        with pytest.raises(ValueError, match=r"layer|shapes|need"):
            client.submit(layer, *arguments)
    ids[1, 1] = model.facts.n_experts
    with pytest.raises(KernelError, match="expert id"):
        client.wait(client.submit(1, x, ids, weights))


@pytest.mark.parametrize("notifier", ["doorbell", "zmq", "tcp"])
def test_two_shards_sum_to_the_whole(
    model, run_dir: Path, start_experts, make_client: MakeClient, notifier: str
) -> None:
    start_experts(**{"experts.experts": "0-4"})
    start_experts(**{"experts.experts": "5-15"})
    endpoints = (experts_endpoint(run_dir, "5-15"), experts_endpoint(run_dir, "0-4"))
    client = make_client(notifier=notifier, endpoints=endpoints)
    client.connect()
    for n in (1, 7, 19):
        batch = model.batch(n, seed=n)
        assert_close(client.wait(client.submit(1, *batch)), model.expected(1, *batch))


@pytest.mark.parametrize("notifier", ["doorbell", "tcp"])
@pytest.mark.parametrize(
    "slices",
    [
        [{"columns": "0-127"}, {"columns": "128-255"}],
        [
            {"experts": "0-6"},
            {"experts": "7-15", "columns": "0-95"},
            {"experts": "7-15", "columns": "96-255"},
        ],
    ],
    ids=["columns", "both"],
)
def test_shards_of_columns_on_cpus_of_their_own_sum_to_the_whole(
    model,
    run_dir: Path,
    start_experts,
    make_client: MakeClient,
    wait_until,
    slices: list[dict[str, str]],
    notifier: str,
) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    services = []
    for index, part in enumerate(slices):
        options = {f"experts.{name}": text for name, text in part.items()}
        services.append(start_experts(**{**options, "experts.cpus": str(cpus[index % len(cpus)])}))
    endpoints = tuple(experts_endpoint(run_dir, service.wait_for("ready")["shard"]) for service in services)
    whole = start_experts()
    whole.wait_for("ready")
    parts, one = make_client(notifier=notifier, endpoints=endpoints), make_client(notifier=notifier)
    for client in (parts, one):
        client.connect()
    for layer in model.facts.layers:
        for n in (1, 7, 19):
            batch = model.batch(n, seed=n)
            y = parts.wait(parts.submit(layer, *batch))
            assert_close(y, model.expected(layer, *batch))
            assert_close(y, one.wait(one.submit(layer, *batch)))
    chosen = np.concatenate([model.batch(n, seed=n)[1].ravel() for n in (1, 7, 19)])
    each_once = dict.fromkeys(model.facts.layers, np.bincount(chosen, minlength=16).tolist())
    wait_until(lambda: parts.expert_tokens() == each_once and one.expert_tokens() == each_once)


def test_shards_must_make_up_the_model(model, run_dir: Path, start_experts, make_client: MakeClient) -> None:
    for experts in ("0-4", "4-15", "6-15"):
        start_experts(**{"experts.experts": experts})
    for shards, complaint in (
        (["0-4", "6-15"], "expert 5 is on no shard"),
        (["0-4", "4-15"], "experts 4-4 are twice"),
        (["0-4"], "expert 5 is on no shard"),
        (["6-15"], "expert 0 is on no shard"),
    ):
        client = make_client(endpoints=tuple(experts_endpoint(run_dir, shard) for shard in shards))
        with pytest.raises(PeerMismatchError, match=complaint):
            client.connect()


def test_two_clients_are_served(model, start_experts, make_client: MakeClient) -> None:
    service = start_experts()
    clients = [make_client(notifier=notifier) for notifier in ("doorbell", "tcp")]
    for client in clients:
        client.connect()
    batches = [model.batch(4, seed) for seed in range(2)]
    expected = [model.expected(1, *batch) for batch in batches]
    for _ in range(20):
        tickets = [client.submit(1, *batch) for client, batch in zip(clients, batches, strict=True)]
        for client, ticket, want in zip(clients, tickets, expected, strict=True):
            assert_close(client.wait(ticket), want)
    clients[0].close()
    service.wait_for("client detached")
    assert_close(clients[1].wait(clients[1].submit(1, *batches[1])), expected[1])


def test_statistics(model, start_experts, make_client: MakeClient, wait_until) -> None:
    start_experts()
    client = make_client()
    client.connect()
    batch = model.batch(5)
    client.wait(client.submit(1, *batch))
    wait_until(lambda: client.stats().get("0", {}).get("expert_tokens_total") == 5)
    stats = client.stats()["0"]
    counts = np.bincount(batch[1].ravel(), minlength=16)
    assert client.expert_tokens() == {1: counts.tolist()}
    assert stats["expert_load_imbalance_ratio"] == pytest.approx(counts.max() / counts.mean())
    assert stats["expert_calls_total"] == 1
    assert stats["expert_failures_total"] == 0
    assert stats["expert_bytes_read_total"] > 0
    assert stats["expert_compute_seconds_total"] > 0
    assert stats["expert_layer_compute_seconds_sum"] == stats["expert_compute_seconds_total"]
    assert stats['expert_layer_compute_seconds_bucket{le="+Inf"}'] == 1
    x, ids, weights = batch
    assert stats['transport_bytes_total{direction="to_experts"}'] == x.nbytes + ids.nbytes + weights.nbytes
    assert stats['transport_bytes_total{direction="from_experts"}'] == x.nbytes
    assert (stats["expert_clients"], stats["expert_queue_depth"], stats["expert_threads"]) == (1, 0, 1)
    assert stats["expert_load_progress"] == 1


def test_it_says_what_it_does_and_leaves_nothing(
    model, run_dir: Path, start_experts, make_client: MakeClient, arenas
) -> None:
    service = start_experts()
    ready = service.wait_for("ready")
    assert ready["experts"] == "0-15"
    assert ready["threads"] == 1
    assert service.wait_for("experts are in memory")["gigabytes"] >= 0
    assert service.wait_for("kernel checked")["deviation"] < 1e-3
    before = arenas()
    client = make_client()
    client.connect()
    assert len(arenas() - before) == 1
    assert service.stop() == 0
    client.close()
    assert arenas() <= before
    assert list(run_dir.iterdir()) == []
    assert service.records("client detached")[0]["reason"] == "the service stops"


def test_an_idle_service_sleeps(start_experts, make_client: MakeClient) -> None:
    service = start_experts()
    make_client().connect()

    def cpu_seconds() -> float:
        fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    before = cpu_seconds()
    time.sleep(3)
    assert cpu_seconds() - before <= 0.03


@pytest.mark.parametrize("isa", ["generic", "avx2", "auto"])
def test_the_isa_can_be_capped(model, start_experts, make_client: MakeClient, isa: str) -> None:
    service = start_experts(**{"experts.isa": isa})
    client = make_client()
    client.connect()
    if isa != "auto":
        assert service.wait_for("ready")["isa"] in {isa, "generic"}
    batch = model.batch(3)
    assert_close(client.wait(client.submit(1, *batch)), model.expected(1, *batch))
