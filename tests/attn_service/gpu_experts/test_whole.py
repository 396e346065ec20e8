"""An engine with experts of its own beside a real expert service: the same tokens as without."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from trimaran.config import AttnConfig, Config, ExpertsConfig
from trimaran.run_dir import open_run_dir
from trimaran.wire import Generate, SamplingParams, TokenBatch
from trimaran_attn.engine import Engine
from trimaran_attn.experts_client import ExpertsClient
from trimaran_attn.experts_link import RemoteExperts
from trimaran_attn.gpu_experts.heat import load_heat
from trimaran_attn.loading import load_engine, open_model
from trimaran_attn.main import facts_of
from trimaran_attn.metrics import Meter

pytestmark = pytest.mark.e2e
N_TOKENS = 12


@pytest.fixture(scope="module")
def run_dir(model_path: Path) -> Iterator[Path]:
    with open_run_dir() as opened:
        options = {"model": model_path, "run_dir": opened.path, "experts.threads": 1, "precision": "exact"}
        arguments = [f"--set={name}={value}" for name, value in options.items()]
        service = subprocess.Popen(
            [sys.executable, "-m", "trimaran_experts", *arguments], stderr=subprocess.DEVNULL
        )
        yield opened.path
        service.kill()
        service.wait()


class Run:
    """What an engine answered, and what it counted until then."""

    def __init__(self, model: Path, run_dir: Path, **options: str) -> None:
        attn = AttnConfig(device="cpu", threads=1, max_step_tokens=24, **options)
        experts = ExpertsConfig(connect_timeout_s=60.0)
        config = Config(model=str(model), precision="exact", attn=attn, experts=experts)
        opened = open_model(config)
        with closing(opened.file), ExpertsClient(experts, facts_of(opened), run_dir, max_tokens=24) as link:
            meter = Meter()
            remote = RemoteExperts(link, meter)
            engine = load_engine(opened, lambda _: remote, meter, routed=link.expert_tokens)
            link.connect()
            self.tokens = generate(engine)
            wait_until(lambda: len(link.expert_tokens()) == 2)  # both layers' counts have come
            engine.tend()
            self.stats = engine.stats()
            self.fingerprint = opened.fingerprint
            engine.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def generate(engine: Engine) -> dict[str, list[int]]:
    """Three requests of several lengths, side by side."""
    tokens: dict[str, list[int]] = {}
    for number, length in enumerate((3, 30, 61)):
        prompt = [(7 * i + number) % 200 + 20 for i in range(length)]
        sampling = SamplingParams(temperature=0.0, max_tokens=N_TOKENS)
        message = Generate(request_id=f"r{number}", prompt_ids=prompt, sampling=sampling, stop_ids=())
        assert engine.submit(message) is None
        tokens[f"r{number}"] = []
    while engine.has_work:
        for event in engine.step():
            assert isinstance(event, TokenBatch)
            tokens[event.request_id] += event.ids
    return tokens


def test_the_same_tokens_as_without(model_path: Path, run_dir: Path, tmp_path: Path) -> None:
    heat_file = tmp_path / "heat.json"
    without = Run(model_path, run_dir)
    assert without.stats.expert_tokens == {}
    assert "gpu_experts" not in without.stats.gauges
    cold = Run(model_path, run_dir, gpu_experts="1MB", heat_file=str(heat_file))
    assert cold.tokens == without.tokens
    assert all(len(tokens) == N_TOKENS for tokens in cold.tokens.values())
    gauges = cold.stats.gauges
    assert 0 < gauges["gpu_expert_bytes"] <= 1_000_000
    assert 0 < gauges["gpu_expert_share"] < 1
    assert cold.stats.counters["gpu_expert_tokens_total"] > 0
    assert set(cold.stats.expert_tokens) == {1, 2}
    assert load_heat(heat_file, cold.fingerprint, 16).counts.keys() == {1, 2}

    chosen = heat_of([0] * 13 + [100, 100, 100])
    heat_file.write_bytes(msgspec.json.encode({**chosen, "fingerprint": cold.fingerprint}))
    warm = Run(model_path, run_dir, gpu_experts="1MB", heat_file=str(heat_file))
    assert warm.tokens == without.tokens
    hot = [counts[13:] for counts in warm.stats.expert_tokens.values()]
    assert all(all(counts) for counts in hot)
    assert warm.stats.gauges["gpu_experts"] == cold.stats.gauges["gpu_experts"]


def heat_of(counts: list[int]) -> dict[str, object]:
    return {"version": 1, "layers": {1: counts, 2: counts}}


def test_all_experts_may_be_here(model_path: Path, run_dir: Path, tmp_path: Path) -> None:
    run = Run(model_path, run_dir, gpu_experts="100MB", heat_file=str(tmp_path / "heat.json"))
    assert run.stats.gauges["gpu_experts"] == 32
    assert len(run.tokens) == 3
