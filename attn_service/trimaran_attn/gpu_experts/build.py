"""From the plan to resident experts: which ones, loaded with their layers, and who looks after them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from trimaran.config import AttnConfig
from trimaran.gguf import GGUFFile
from trimaran.plan import Plan
from trimaran.plan.experts import expert_sizes
from trimaran.plan.sizes import largest_step
from trimaran.spec import ModelSpec
from trimaran.telemetry import Log
from trimaran.units import format_bytes

from trimaran_attn.experts import Experts
from trimaran_attn.gpu_experts.caretaker import Caretaker, Routed
from trimaran_attn.gpu_experts.heat import Heat, heat_path, load_heat
from trimaran_attn.gpu_experts.placement import choose_residents
from trimaran_attn.gpu_experts.resident import Compute, ExpertFile, ResidentLayer
from trimaran_attn.gpu_experts.split import SplitExperts
from trimaran_attn.gpu_experts.stream import RateMeter, StreamedExperts, StreamPolicy
from trimaran_attn.gpu_experts.stream_copy import CudaCopier
from trimaran_attn.gpu_experts.stream_cost import LEAST_TOKENS
from trimaran_attn.gpu_experts.streamer import Streamer
from trimaran_attn.registry import Site

_log = Log(__name__)


class Residents:
    """The experts that a plan has room for.

    Args:
        config: `gpu_experts`, `heat_file`, `replica`.
        file, spec, fingerprint: the model.
        plan: says how many bytes, on which device.
    """

    def __init__(
        self, config: AttnConfig, file: GGUFFile, spec: ModelSpec, fingerprint: str, plan: Plan
    ) -> None:
        self._fingerprint = fingerprint
        self._path = heat_path(config.heat_file, fingerprint, config.replica)
        self._layers: list[ResidentLayer] = []
        self._chosen: dict[int, tuple[int, ...]] = {}
        self._streams = _Streams(config, spec, file) if config.stream_prefill == "auto" else None
        if not plan.experts:
            if config.gpu_experts != "off":
                _log.info(
                    "no experts are held here: no room is left, or there is no GPU",
                    setting=config.gpu_experts,
                )
            return
        self._heat = load_heat(self._path, fingerprint, spec.moe.n_experts)
        sizes = {layer: size.gpu for layer, size in expert_sizes(spec, file.tensors).items()}
        rooms = [(share.layers, share.experts) for share in plan.gpus]
        for layers, room in rooms or [(range(spec.n_layers), plan.experts)]:
            here = {layer: sizes[layer] for layer in layers if layer in sizes}
            self._chosen |= choose_residents(self._heat.counts, here, room, spec.moe.n_experts)
        if not self._chosen:
            _log.warning(
                "no expert fits attn.gpu_experts, or none is quantised", room=format_bytes(plan.experts)
            )

    def wrap(self, experts: Callable[[Site], Experts]) -> Callable[[Site], Experts]:
        """The same way to the experts, but for those that are here."""

        def build(site: Site) -> Experts:
            inner, chosen = experts(site), self._chosen.get(site.layer)
            if self._streams is not None:
                inner = self._streams.wrap(site, inner)
            if chosen is None:
                return inner
            layer = ResidentLayer(ExpertFile.of(site), chosen, site.device, compute_on(site.device))
            self._layers.append(layer)
            return SplitExperts(inner, layer)

        return build

    def caretaker(self, routed: Routed) -> Caretaker | None:
        """Who looks after them, once all layers are built; None without any."""
        if not self._layers:
            return None
        caretaker = Caretaker(self._layers, self._heat, self._keep, routed)
        tally = caretaker.tally
        _log.info("experts held here", experts=tally.n_experts, memory=format_bytes(tally.nbytes))
        return caretaker

    def close(self) -> None:
        """After the last step: end what reads experts for streaming."""
        if self._streams is not None:
            self._streams.close()

    def _keep(self, heat: Heat) -> None:
        heat.save(self._path, self._fingerprint)


class _Streams:
    """A streamer for each GPU; other devices compute nothing of what they would have to fetch first."""

    def __init__(self, config: AttnConfig, spec: ModelSpec, file: GGUFFile) -> None:
        sizes = expert_sizes(spec, file.tensors)
        self._sizes = {layer: size.file for layer, size in sizes.items() if size.native}
        self._most = largest_step(config, on_gpu=True)
        # Steps that only decode, also those of padding that are recorded, are no longer than this.
        self._least = max(LEAST_TOKENS, config.max_running + 1)
        self._made: dict[torch.device, tuple[Streamer, StreamPolicy]] = {}

    def wrap(self, site: Site, inner: Experts) -> Experts:
        """The same way to the experts, but for long chunks."""
        if site.device.type != "cuda" or site.layer not in self._sizes:
            return inner
        if site.device not in self._made:
            self._made[site.device] = self._make(site)
        return StreamedExperts(inner, ExpertFile.of(site), *self._made[site.device])

    def close(self) -> None:
        for streamer, _ in self._made.values():
            streamer.close()
        self._made.clear()

    def _make(self, site: Site) -> tuple[Streamer, StreamPolicy]:
        device, moe = site.device, site.spec.moe
        streamer = Streamer(
            max(self._sizes.values()),
            moe.n_experts,
            device=device,
            copier=CudaCopier(device),
            compute=compute_on(device),
        )
        meter = RateMeter(streamer, moe.top_k, lambda: torch.cuda.synchronize(device))
        return streamer, StreamPolicy(moe.top_k, self._most, meter, threshold=self._least)


def compute_on(device: torch.device) -> Compute:
    """The kernels on a GPU; elsewhere their reference, which is slow: for trials with small models."""
    if device.type == "cuda":
        from trimaran_kernels.gpu.grouped import grouped_experts  # noqa: PLC0415 Triton only where it is used

        return grouped_experts
    from trimaran_kernels.gpu.grouped_reference import grouped_reference  # noqa: PLC0415 as above

    return grouped_reference
