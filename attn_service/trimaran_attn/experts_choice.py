"""Which way the model's tensors take to the experts: by the CPU, or by the GPU itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from trimaran.config import ExpertsConfig
from trimaran.telemetry import Log

from trimaran_attn.experts import Experts
from trimaran_attn.experts_client import ExpertsClient
from trimaran_attn.experts_link import RemoteExperts
from trimaran_attn.hop_steps import HopSteps, PlainSteps
from trimaran_attn.metrics import Meter

_log = Log(__name__)


def choose_experts(
    link: ExpertsClient,
    config: ExpertsConfig,
    meter: Meter,
    *,
    devices: Sequence[torch.device],
    device_slots: int,
) -> tuple[Experts, HopSteps]:
    """The model's way to the experts, and what is to be told of its steps.

    Args:
        link: to the shards; needs not be connected yet.
        config: notifier, element type and time limits.
        meter: takes how long answers are waited for.
        devices: of the tensors, all GPUs or one CPU.
        device_slots: that `link` left to each GPU.
    """
    remote = RemoteExperts(link, meter, torch.bfloat16 if config.dtype == "bf16" else torch.float32)
    if devices[0].type != "cuda":
        return remote, PlainSteps()
    if config.notifier != "doorbell":
        _log.info("the CPU carries tokens to the experts", reason=f"experts.notifier is {config.notifier}")
        return remote, PlainSteps()
    # Triton, which only a GPU needs.
    from trimaran_attn.device_experts import DeviceExperts  # noqa: PLC0415
    from trimaran_attn.pinned import CudaPinning  # noqa: PLC0415

    numbered = tuple(torch.device("cuda", device.index or 0) for device in devices)  # as tensors say it
    experts = DeviceExperts(
        link,
        remote,
        meter,
        CudaPinning(*numbered),
        devices=numbered,
        n_slots=device_slots,
        timeout_s=config.call_timeout_s,
    )
    return experts, experts
