from __future__ import annotations

import pytest
from trimaran.config import GatewayConfig
from trimaran_gateway import limits
from trimaran_gateway.errors import ApiError
from trimaran_gateway.limits import ClientLimits, TokenBucket, address_of, spend_tokens


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ask(gate: ClientLimits, name: str = "a", tokens: int = 0) -> None:
    with gate.admitted(name):
        spend_tokens(tokens)


def refusal(gate: ClientLimits, name: str = "a") -> ApiError:
    with pytest.raises(ApiError) as failure:
        ask(gate, name)
    assert failure.value.status_code == 429
    assert failure.value.code == "rate_limit_exceeded"
    return failure.value


def test_bucket_fills_steadily_and_never_over() -> None:
    bucket = TokenBucket(60, now=0)
    bucket.spend(60, now=0)
    assert bucket.wait_s(now=0) == pytest.approx(1)
    assert bucket.wait_s(now=0.75) == pytest.approx(0.25)
    assert bucket.wait_s(now=1.01) == 0
    bucket.spend(60, now=1e6)
    assert bucket.wait_s(now=1e6) == pytest.approx(1)


def test_requests_per_minute() -> None:
    clock = Clock()
    gate = ClientLimits(GatewayConfig(requests_per_minute=3), clock)
    for _ in range(3):
        ask(gate)
    assert refusal(gate).headers == {"Retry-After": "20"}
    ask(gate, "another client")
    clock.now += 20.001
    ask(gate)
    refusal(gate)


def test_refused_requests_cost_nothing() -> None:
    clock = Clock()
    gate = ClientLimits(GatewayConfig(requests_per_minute=1), clock)
    ask(gate)
    for _ in range(50):
        refusal(gate)
    clock.now += 60.001
    ask(gate)


def test_tokens_may_be_overdrawn_and_are_paid_back() -> None:
    clock = Clock()
    gate = ClientLimits(GatewayConfig(tokens_per_minute=600), clock)
    ask(gate, tokens=599)
    ask(gate, tokens=600)
    assert refusal(gate).headers == {"Retry-After": "60"}
    clock.now += 59.5
    refusal(gate)
    clock.now += 0.6
    ask(gate)


def test_requests_at_once() -> None:
    gate = ClientLimits(GatewayConfig(max_concurrent_requests=2))
    with gate.admitted("a"):
        with gate.admitted("a"):
            refusal(gate)
            ask(gate, "b")
        ask(gate)
    with pytest.raises(KeyError), gate.admitted("a"):
        raise KeyError
    with gate.admitted("a"), gate.admitted("a"):
        refusal(gate)


def test_the_number_of_remembered_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CLIENTS", 10)
    gate = ClientLimits(GatewayConfig(requests_per_minute=1))
    with gate.admitted("busy"):
        for number in range(100):
            ask(gate, str(number))
        refusal(gate, "busy")
        refusal(gate, "99")
        ask(gate, "0")


def test_nobody_pays_outside_a_request() -> None:
    spend_tokens(5)


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        (("192.0.2.7", 4000), "192.0.2.7"),
        (("2001:db8:0:1:aaaa::1", 4000), "2001:db8:0:1::/64"),
        (("testclient", 1), "testclient"),
        (None, "unknown"),
    ],
)
def test_names_of_addresses(peer: tuple[str, int] | None, name: str) -> None:
    assert address_of(peer) == name
