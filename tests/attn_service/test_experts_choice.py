"""Which way tokens take to the experts; the GPU's own is checked by `make gpu-check`."""

from __future__ import annotations

from pathlib import Path

import interpreted
import pytest
import torch
from trimaran.config import AttnConfig, Config, ExpertsConfig
from trimaran.spec import ModelSpec
from trimaran_attn import pinned
from trimaran_attn.device_experts import DeviceExperts
from trimaran_attn.experts import Experts
from trimaran_attn.experts_borrowed import BorrowedExperts
from trimaran_attn.experts_choice import choose_experts
from trimaran_attn.experts_client import ExpertsClient, ModelFacts
from trimaran_attn.experts_link import RemoteExperts
from trimaran_attn.hop_steps import HopSteps
from trimaran_attn.metrics import Meter
from trimaran_kernels import ThreadPool, usable_cpus

FACTS = ModelFacts("fingerprint", hidden_size=8, top_k=2, n_experts=8, layers=(1,))
pytestmark = pytest.mark.skipif(interpreted.ON_GPU, reason="asks for GPUs that are not there")


def choose(link: ExpertsClient, config: Config, device: str) -> tuple[Experts, HopSteps]:
    spec: ModelSpec = None  # type: ignore[assignment]  # of no use before weights are borrowed
    pool = ThreadPool(usable_cpus(1))
    devices = (torch.device(device),)
    return choose_experts(link, config, Meter(), spec=spec, pool=pool, devices=devices, device_slots=2)


@pytest.mark.parametrize(
    ("device", "notifier", "kind"),
    [
        ("cuda:0", "zmq", RemoteExperts),
        ("cuda:0", "doorbell", DeviceExperts),
        ("cuda", "doorbell", DeviceExperts),
    ],
)
def test_a_gpu_makes_its_own_hops_by_the_doorbell(tmp_path: Path, monkeypatch, device, notifier, kind):
    """A GPU without a number is the first one, as its tensors say."""
    asked = []
    monkeypatch.setattr(pinned, "CudaPinning", lambda device: asked.append(device) or pinned.SameMemory())
    config = ExpertsConfig(notifier=notifier, endpoints=(f"ipc://{tmp_path}/e.sock",))
    with ExpertsClient(config, FACTS, tmp_path, device_slots=2) as link:
        way = choose(link, Config(experts=config), device)
    assert isinstance(way[0], kind)
    assert not way[1].is_attached
    assert asked == ([torch.device("cuda:0")] if kind is DeviceExperts else [])


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (Config(), BorrowedExperts),
        (Config(attn=AttnConfig(experts="service")), RemoteExperts),
        (Config(precision="exact"), RemoteExperts),
        (Config(attn=AttnConfig(replicas=("cpu",))), BorrowedExperts),
        (Config(attn=AttnConfig(replicas=("cpu", "cpu"))), RemoteExperts),
    ],
)
def test_a_cpu_borrows_experts_where_it_gains_by_it(tmp_path: Path, config: Config, kind: type) -> None:
    experts = ExpertsConfig(endpoints=(f"ipc://{tmp_path}/e.sock",))
    with ExpertsClient(experts, FACTS, tmp_path) as link:
        way = choose(link, config, "cpu")
    assert type(way[0]) is kind
    assert not way[1].is_attached
