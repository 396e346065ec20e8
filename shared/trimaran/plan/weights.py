"""What the parts of a model take, in the form that each place holds them in.

Matrices stay quantised: on a CPU packed, or in the mapped file with `precision: exact`; on a GPU in the forms
of `gpu_weights`. Either way the embedding table is read from the mapped file, the latent up-projection
(Wkv_b) is expanded, and routed experts stay in RAM.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

from trimaran.cpu_weights import packed_bytes
from trimaran.gguf import GGMLType, TensorInfo
from trimaran.gpu_weights import gpu_bytes, is_re_encoded
from trimaran.model_tensors import with_head
from trimaran.plan.experts import stream_buffers
from trimaran.plan.report import Item, Place
from trimaran.spec import ModelSpec

_PARTS = (
    ("embeddings", r"^token_embd\."),
    ("head", r"^output(_norm)?\."),
    ("latent maps", r"^blk\.\d+\.attn_(kv|k|v)_b\."),
    ("attention", r"^blk\.\d+\.attn_"),
    ("routed experts", r"^blk\.\d+\.ffn_(gate|up|down)_exps\."),
    ("shared experts", r"^blk\.\d+\.ffn_(gate|up|down)_shexp\."),
    ("router", r"^blk\.\d+\.(ffn_gate_inp|exp_probs_b)"),
    ("dense layers", r"^blk\.\d+\.ffn_"),
)
_IN_RAM = frozenset({"embeddings", "routed experts"})
_MATRICES = frozenset({"attention", "head", "dense layers", "shared experts"})


@dataclass(frozen=True)
class Form:
    """How weights are held.

    Attributes:
        on_gpu: whether the attention service's are on GPUs.
        exact: whether nothing shall be rounded: nothing is packed, latent maps keep their values.
        packs_experts: whether the expert service packs.
        held: bytes of tensors whose form rules chose.
    """

    on_gpu: bool
    exact: bool
    packs_experts: bool
    held: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """Sums over a model's tensors.

    Attributes:
        items: the parts, and where they go.
        skipped: bytes of the file that nobody uses.
        layers: bytes of each layer on a GPU; 0 without one.
        head: bytes on a GPU of what follows the last layer.
        copied: bytes that each attention service on a CPU has for itself; the rest is mapped by all.
        re_encoded: types of matrices that a GPU holds as the nearest Q8_0 weights.
        stream, staged: bytes on a GPU, and of host memory, that streaming experts takes.
    """

    items: tuple[Item, ...]
    skipped: int
    layers: tuple[int, ...]
    head: int
    copied: int
    re_encoded: tuple[str, ...]
    stream: int
    staged: int

    def total(self, place: Place) -> int:
        """Bytes in one kind of memory."""
        return sum(item.nbytes for item in self.items if item.place == place)


def weigh(spec: ModelSpec, tensors: Mapping[str, TensorInfo], form: Form) -> Weights:
    """Count the tensors of a model."""
    groups: dict[str, list[TensorInfo]] = {part: [] for part, _ in _PARTS}
    skipped, layers, head = 0, [0] * spec.n_layers, 0
    for info in with_head(tensors).values():
        part = _part(spec, info.name)
        if part is None:
            skipped += info.nbytes
            continue
        groups[part].append(info)
        if form.on_gpu and part == "head":
            head += _bytes(part, info, form)
        elif form.on_gpu and part not in _IN_RAM:
            layers[_layer(info.name) or 0] += _bytes(part, info, form)
    items = tuple(_item(part, infos, form) for part, infos in groups.items() if infos)
    re_encoded = tuple(_re_encoded(groups)) if form.on_gpu else ()
    own = frozenset({"latent maps"}) if form.exact else _MATRICES | {"latent maps"}
    copied = sum(item.nbytes for item in items if item.part in own)
    stream, staged = stream_buffers(spec, tensors)
    return Weights(items, skipped, tuple(layers), head, copied, re_encoded, stream, staged)


def _part(spec: ModelSpec, name: str) -> str | None:
    layer = _layer(name)
    if layer is not None and layer >= spec.n_layers:
        return None
    return next((part for part, pattern in _PARTS if re.match(pattern, name)), None)


def _layer(name: str) -> int | None:
    match = re.match(r"^blk\.(\d+)\.", name)
    return None if match is None else int(match[1])


def _item(part: str, infos: list[TensorInfo], form: Form) -> Item:
    place: Place = "GPU" if form.on_gpu and part not in _IN_RAM else "RAM"
    file_bytes = sum(info.nbytes for info in infos)
    return Item(part, place, _types(infos), file_bytes, sum(_bytes(part, info, form) for info in infos))


def _bytes(part: str, info: TensorInfo, form: Form) -> int:
    """What a tensor takes where it goes."""
    if info.name in form.held:
        return form.held[info.name]
    if form.on_gpu and part not in _IN_RAM:
        return _gpu_bytes(part, info)
    if part == "latent maps":
        return _map_bytes(info, exact=form.exact)
    packs = form.packs_experts if part == "routed experts" else part in _MATRICES and not form.exact
    return packed_bytes(info) if packs else info.nbytes


def _map_bytes(info: TensorInfo, *, exact: bool) -> int:
    """On a CPU: Q8_0 stays so where the halves are tensors of their own, and so does float32; everything else
    becomes binary16 unless nothing shall be rounded."""
    if info.type == GGMLType.Q8_0 and "attn_kv_b" not in info.name:
        return info.nbytes
    return prod(info.shape) * (4 if exact or info.type == GGMLType.F32 else 2)


def _gpu_bytes(part: str, info: TensorInfo) -> int:
    """Norms and the router stay float32, the latent maps become bfloat16."""
    if part == "router" or len(info.shape) == 1:
        return 4 * prod(info.shape)
    return 2 * prod(info.shape) if part == "latent maps" else gpu_bytes(info)


def _re_encoded(groups: Mapping[str, list[TensorInfo]]) -> Iterator[str]:
    types = {info.type for part in _MATRICES for info in groups[part]}
    yield from sorted(type_.name for type_ in types if is_re_encoded(type_))


def _types(infos: list[TensorInfo]) -> str:
    """Names of the types, the one with the most bytes first."""
    sizes: Counter[str] = Counter()
    for info in infos:
        sizes[info.type.name] += info.nbytes
    return " ".join(name for name, _ in sizes.most_common())
