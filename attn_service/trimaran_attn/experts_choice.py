"""Which way the model's tensors take to the experts: by the CPU, by the GPU itself, or none at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from trimaran.config import Config
from trimaran.plan.sizes import largest_step
from trimaran.spec import ModelSpec
from trimaran.telemetry import Log
from trimaran_kernels import ThreadPool

from trimaran_attn.experts import Experts
from trimaran_attn.experts_borrowed import BorrowedExperts
from trimaran_attn.experts_client import ExpertsClient
from trimaran_attn.experts_link import ExpertsLink, RemoteExperts
from trimaran_attn.hop_steps import HopSteps, PlainSteps
from trimaran_attn.metrics import Meter

_log = Log(__name__)


def choose_experts(
    link: ExpertsClient,
    config: Config,
    meter: Meter,
    *,
    spec: ModelSpec,
    pool: ThreadPool,
    devices: Sequence[torch.device],
    device_slots: int,
) -> tuple[Experts, HopSteps]:
    """The model's way to the experts, and what is to be told of its steps.

    Args:
        link: to the shards; needs not be connected yet.
        config: with the hop's element type decided.
        meter: takes how long answers are waited for.
        spec: of the model. pool: the attention's threads on the CPU.
        devices: of the tensors, all GPUs or one CPU.
        device_slots: that `link` left to each GPU.
    """
    dtype = torch.bfloat16 if config.experts.dtype == "bf16" else torch.float32
    remote = RemoteExperts(link, meter, dtype, pool)
    if devices[0].type != "cuda":
        if _may_borrow(config):
            longest = largest_step(config.attn, on_gpu=False)
            return BorrowedExperts(remote, link, meter, spec, pool, max_tokens=longest), PlainSteps()
        return remote, PlainSteps()
    notifier = config.experts.notifier
    if notifier != "doorbell":
        _log.info("the CPU carries tokens to the experts", reason=f"experts.notifier is {notifier}")
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
        timeout_s=config.experts.call_timeout_s,
    )
    return experts, experts


def _may_borrow(config: Config) -> bool:
    """Whether experts are computed here if the service lets it; several processes would share no work."""
    return config.attn.experts == "auto" and config.precision == "int8" and len(config.attn.replicas) <= 1


def connect(
    link: ExpertsLink, experts: Experts, on_progress: Callable[[str, float], None] | None = None
) -> None:
    """Wait until every shard is ready, then compute here what can be.

    Raises:
        PeerError, PeerMismatchError: as of `ExpertsLink.connect`.
    """
    link.connect(on_progress)
    if isinstance(experts, BorrowedExperts):
        experts.borrow()
