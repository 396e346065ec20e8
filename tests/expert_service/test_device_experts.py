"""A device's hops, in Triton's interpreter, with real expert services at the other end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import interpreted
import numpy as np
import pytest
import torch
from logical_devices import LogicalDevices, device_of
from trimaran.errors import KernelError, OverloadedError, PeerError
from trimaran_attn import device_experts
from trimaran_attn.device_experts import DeviceExperts
from trimaran_attn.experts_client import ExpertsClient
from trimaran_attn.experts_link import RemoteExperts
from trimaran_attn.metrics import Meter
from trimaran_attn.pinned import PinningRefusedError, SameMemory

CPU, ONE, TWO = torch.device("cpu"), torch.device("cpu:0"), torch.device("cpu:1")
LAYERS = (1, 2)
MakeClient = Callable[..., ExpertsClient]
MakeDevice = Callable[..., DeviceExperts]
pytestmark = pytest.mark.skipif(interpreted.ON_GPU, reason="memory of the CPU: `make gpu-check`")


class NoPinning(SameMemory):
    """A driver that refuses."""

    def register(self, memory: np.ndarray) -> None:
        raise PinningRefusedError(f"the driver refuses {memory.nbytes} bytes")


class KeepingPinning(SameMemory):
    """A driver that gives nothing back."""

    asked = 0

    def unregister(self, memory: np.ndarray) -> None:
        self.asked += 1
        raise PinningRefusedError(f"the driver keeps {memory.nbytes} bytes")


class CountingPinning(SameMemory):
    """Knows what it has registered."""

    def __init__(self) -> None:
        self.held = 0

    def register(self, memory: np.ndarray) -> None:
        self.held += 1

    def unregister(self, memory: np.ndarray) -> None:
        self.held -= 1


@pytest.fixture(autouse=True)
def _overflows_are_infinite() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def make_device(make_client: MakeClient) -> MakeDevice:
    """Connected: `make_device(endpoints=…, timeout_s=…)`."""

    def make(
        timeout_s: float = 30.0,
        pinning: SameMemory | None = None,
        devices: tuple[torch.device, ...] = (CPU,),
        **options: object,
    ) -> DeviceExperts:
        client = make_client(device_slots=2 * len(devices), **options)
        client.connect()
        meter = Meter()
        fallback = RemoteExperts(client, meter)
        pinning = pinning or SameMemory()
        return DeviceExperts(
            client, fallback, meter, pinning, devices=devices, n_slots=2, timeout_s=timeout_s
        )

    return make


def compute(experts: DeviceExperts, model, n: int = 3, seed: int = 0) -> torch.Tensor:
    """A step of two layers."""
    x, ids, weights = map(torch.from_numpy, model.batch(n, seed))
    with experts.step():
        return torch.stack([experts.wait(experts.submit(layer, x, ids, weights)) for layer in LAYERS])


def expected(model, n: int = 3, seed: int = 0) -> torch.Tensor:
    batch = model.batch(n, seed)
    return torch.stack([torch.from_numpy(model.expected(layer, *batch)).float() for layer in LAYERS])


def assert_works(experts: DeviceExperts, model, seed: int = 0) -> None:
    torch.testing.assert_close(
        compute(experts, model, 3, seed), expected(model, 3, seed), rtol=1e-3, atol=1e-3
    )


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_recording_that_breaks_off_keeps_no_slot(model, start_experts, make_device: MakeDevice) -> None:
    """The step that was to be recorded is launched instead, with all of its slots."""
    start_experts()
    experts = make_device()
    x, ids, weights = map(torch.from_numpy, model.batch(2))
    live = torch.tensor([2], dtype=torch.int32)

    def break_off() -> None:
        experts.submit(1, x, ids, weights)
        raise RuntimeError("out of memory")

    with experts.step():
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"), experts.padded(live):
                break_off()
            with experts.padded(live):
                y = experts.wait(experts.submit(1, x, ids, weights))
    np.testing.assert_allclose(y, model.expected(1, *model.batch(2)), rtol=1e-3, atol=1e-3)


@pytest.fixture
def two_shards(model, start_experts, run_dir: Path) -> tuple[str, ...]:
    """Endpoints of services with half of the experts each."""
    half = model.facts.n_experts // 2
    endpoints = []
    for name, owned in (("a", f"0-{half - 1}"), ("b", f"{half}-{model.facts.n_experts - 1}")):
        endpoints.append(f"ipc://{run_dir}/{name}.sock")
        start_experts(**{"experts.listen": endpoints[-1], "experts.experts": owned})
    return tuple(endpoints)


def test_two_shards_are_summed(model, make_device: MakeDevice, two_shards: tuple[str, ...]) -> None:
    experts = make_device(endpoints=two_shards)
    for seed in range(3):
        assert_works(experts, model, seed)
    assert experts.is_attached


def test_rows_of_padding_do_not_cross(model, start_experts, make_device: MakeDevice) -> None:
    start_experts()
    experts = make_device()
    x, ids, weights = map(torch.from_numpy, model.batch(4))
    ids[2:] = -7
    x[2:] = torch.nan
    with experts.padded(torch.tensor([2], dtype=torch.int32)), experts.step():
        y = experts.wait(experts.submit(1, x, ids, weights))
    real = tuple(part[:2] for part in model.batch(4))
    np.testing.assert_allclose(y[:2], model.expected(1, *real), rtol=1e-3, atol=1e-3)
    assert not y[2:].any()


def test_more_layers_than_slots_are_refused(model, start_experts, make_device: MakeDevice) -> None:
    start_experts()
    experts = make_device()
    x, ids, weights = map(torch.from_numpy, model.batch(1))
    with experts.step():
        tickets = [experts.submit(1, x, ids, weights) for _ in range(2)]
        with pytest.raises(OverloadedError, match="slots"):
            experts.submit(1, x, ids, weights)
        for ticket in tickets:
            experts.wait(ticket)
    assert_works(experts, model)


def test_what_a_slot_has_no_room_for_is_refused(model, start_experts, make_device: MakeDevice) -> None:
    start_experts()
    experts = make_device(max_tokens=3)
    x, ids, weights = map(torch.from_numpy, model.batch(4))
    with experts.step():
        with pytest.raises(ValueError, match="4 tokens at once, a slot of the experts' arena holds 3"):
            experts.submit(1, x, ids, weights)
        with pytest.raises(ValueError, match="shapes"):
            experts.submit(1, x[:3], ids[:2], weights[:3])
    assert_works(experts, model)


def test_arenas_are_given_back(model, start_experts, make_device: MakeDevice) -> None:
    """Twice does no harm; a later step would register them anew."""
    start_experts()
    pinning = CountingPinning()
    experts = make_device(pinning=pinning)
    assert_works(experts, model)
    assert pinning.held == 1
    experts.close()
    experts.close()
    assert pinning.held == 0
    assert not experts.is_attached


def test_a_service_killed_in_a_step_is_a_peer_error_and_it_recovers(
    model, start_experts, make_device: MakeDevice
) -> None:
    service = start_experts()
    experts = make_device(timeout_s=1000.0)
    assert_works(experts, model)
    service.freeze()
    threading.Timer(0.3, service.process.kill).start()
    started = time.monotonic()
    with pytest.raises(PeerError, match="went away"):
        compute(experts, model)
    assert time.monotonic() - started < 20
    with pytest.raises(PeerError, match="not ready"):
        compute(experts, model)
    start_experts().wait_for("client attached")
    deadline = time.monotonic() + 20
    while True:
        try:
            assert_works(experts, model)
        except PeerError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            break


def test_a_frozen_service_is_a_timeout(model, start_experts, make_device: MakeDevice) -> None:
    service = start_experts()
    experts = make_device(timeout_s=0.05)
    compute(experts, model)
    service.freeze()
    with pytest.raises(PeerError, match="did not answer in time"):
        compute(experts, model)
    service.process.send_signal(signal.SIGCONT)


def test_a_refusal_is_a_kernel_error_and_harms_no_other_step(
    model, start_experts, make_device: MakeDevice
) -> None:
    start_experts()
    experts = make_device()
    x, ids, weights = map(torch.from_numpy, model.batch(2))
    x[0, 0] = torch.inf
    with pytest.raises(KernelError, match="layer 2: the input holds NaN"), experts.step():
        experts.wait(experts.submit(2, x, ids, weights))
    assert_works(experts, model)


def test_where_the_driver_refuses_the_cpu_carries(model, start_experts, make_device: MakeDevice) -> None:
    start_experts()
    experts = make_device(pinning=NoPinning())
    assert_works(experts, model)
    assert not experts.is_attached


def test_every_arena_is_given_back_though_the_driver_refuses(
    model, make_device: MakeDevice, two_shards: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    pinning = KeepingPinning()
    experts = make_device(pinning=pinning, endpoints=two_shards)
    assert_works(experts, model)
    with caplog.at_level("WARNING"):
        experts.close()
    assert pinning.asked == len(caplog.records) == 2
    assert_works(experts, model)


def test_a_step_that_cannot_begin_ends_where_it_began() -> None:
    told: list[str] = []

    class Memory:
        def __init__(self, name: str, *, breaks: bool = False) -> None:
            self.name, self.breaks = name, breaks

        def begin_step(self) -> None:
            if self.breaks:
                raise KernelError("the arena is closed")
            told.append(f"{self.name} begins")

        def end_step(self) -> None:
            told.append(f"{self.name} ends")

    arenas = [SimpleNamespace(memory=Memory(name, breaks=name == "second")) for name in ("first", "second")]
    with pytest.raises(KernelError, match="closed"), device_experts._in_flight(arenas):
        raise AssertionError("not reached")
    assert told == ["first begins", "first ends"]


BEGIN_A_STEP_AND_HANG = """
import sys, time
from pathlib import Path
from trimaran.config import ExpertsConfig
from trimaran_attn.experts_client import ExpertsClient, ModelFacts
facts = ModelFacts({facts})
client = ExpertsClient(ExpertsConfig(connect_timeout_s=20.0), facts, Path({run_dir!r}), device_slots=2)
client.connect()
client.shared_arenas()[0].memory.begin_step()
print("in a step", flush=True)
time.sleep(60)
"""


def test_a_client_killed_in_a_step_soon_costs_nothing(model, start_experts, run_dir: Path) -> None:
    service = start_experts()
    facts = model.facts
    arguments = (facts.fingerprint, facts.hidden_size, facts.top_k, facts.n_experts, facts.layers)
    script = BEGIN_A_STEP_AND_HANG.format(facts=", ".join(map(repr, arguments)), run_dir=str(run_dir))
    client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == b"in a step\n"
    client.kill()
    client.wait()
    client.stdout.close()
    service.wait_for("client detached")
    before = cpu_seconds(service.process.pid)
    time.sleep(1)
    assert cpu_seconds(service.process.pid) - before <= 0.03


def test_two_devices_make_their_own_hops(model, start_experts, make_device: MakeDevice) -> None:
    """Each in slots of its own, at the same time; an answer comes to the device that asked."""
    start_experts()
    with LogicalDevices():
        experts = make_device(devices=(ONE, TWO))
        for seed in range(3):
            x, ids, weights = map(torch.from_numpy, model.batch(3, seed))
            with experts.step():
                asked = [
                    experts.submit(layer, x.to(device), ids.to(device), weights.to(device))
                    for layer, device in zip(LAYERS, (ONE, TWO), strict=True)
                ]
                answers = [experts.wait(ticket) for ticket in reversed(asked)][::-1]
            assert [device_of(answer) for answer in answers] == [ONE, TWO]
            got = torch.stack([answer.cpu() for answer in answers])
            torch.testing.assert_close(got, expected(model, 3, seed), rtol=1e-3, atol=1e-3)
        assert experts.is_attached


def test_padding_of_two_devices_does_not_cross(model, start_experts, make_device: MakeDevice) -> None:
    start_experts()
    with LogicalDevices():
        experts = make_device(devices=(ONE, TWO))
        x, ids, weights = map(torch.from_numpy, model.batch(4))
        live = [torch.tensor([n], dtype=torch.int32).to(device) for n, device in ((2, ONE), (1, TWO))]
        with experts.padded(*live), experts.step():
            for n, device in ((2, ONE), (1, TWO)):
                y = experts.wait(experts.submit(1, x.to(device), ids.to(device), weights.to(device))).cpu()
                real = tuple(part[:n] for part in model.batch(4))
                np.testing.assert_allclose(y[:n], model.expected(1, *real), rtol=1e-3, atol=1e-3)
                assert not y[n:].any()


def test_a_failure_on_the_second_device_is_told(model, start_experts, make_device: MakeDevice) -> None:
    start_experts()
    with LogicalDevices():
        experts = make_device(devices=(ONE, TWO))
        x, ids, weights = map(torch.from_numpy, model.batch(2))
        x[0, 0] = torch.inf
        x, ids, weights = x.to(TWO), ids.to(TWO), weights.to(TWO)
        with pytest.raises(KernelError, match="layer 2: the input holds NaN"), experts.step():
            experts.wait(experts.submit(2, x, ids, weights))
        with experts.step():
            assert experts.wait(experts.submit(2, x[1:], ids[1:], weights[1:])).isfinite().all()
