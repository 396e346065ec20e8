from __future__ import annotations

import pytest
from trimaran.config_loader import load_config
from trimaran.errors import ConfigError
from trimaran.replicas import for_replica, replicas, services_in_ram
from trimaran.run_dir import attn_endpoint


def test_one_service_is_what_attn_device_says() -> None:
    config = load_config(None, {"attn.device": "cuda:1"}, {})
    assert list(replicas(config)) == [0]
    assert for_replica(config, 0) == config
    assert services_in_ram(config) == 1


def test_each_service_has_its_device() -> None:
    config = load_config(None, {"attn.replicas": "cuda:0+cuda:1,cpu,cpu", "attn.max_running": 3}, {})
    assert [for_replica(config, number).attn.device for number in replicas(config)] == [
        "cuda:0+cuda:1",
        "cpu",
        "cpu",
    ]
    last = for_replica(config, 2)
    assert (last.attn.replica, last.attn.max_running) == (2, 3)
    assert services_in_ram(last) == 2


@pytest.mark.parametrize("options", [{}, {"attn.replicas": "cpu,cpu"}])
def test_a_service_that_is_not_there(options: dict[str, object]) -> None:
    config = load_config(None, options, {})
    with pytest.raises(ConfigError, match=r"attn.replica is 2, but there are \d attention services"):
        for_replica(config, 2)


@pytest.mark.parametrize("devices", ["cuda:1,cuda:1", "cuda,cuda:0", "cuda:0+cuda:1,cuda:1"])
def test_a_gpu_serves_once(devices: str) -> None:
    config = load_config(None, {"attn.replicas": devices}, {})
    with pytest.raises(ConfigError, match=r"attn.replicas names cuda:\d twice"):
        for_replica(config, 0)


@pytest.mark.parametrize("devices", ["auto,auto", "cpu+cpu", "gpu:0"])
def test_wrong_devices_are_refused(devices: str) -> None:
    with pytest.raises(ConfigError, match=r"attn.replicas"):
        load_config(None, {"attn.replicas": devices}, {})


def test_endpoints_differ_and_the_first_keeps_its_name() -> None:
    assert attn_endpoint("/run/x") == "ipc:///run/x/attn.sock"
    assert attn_endpoint("/run/x", 2) == "ipc:///run/x/attn-2.sock"
