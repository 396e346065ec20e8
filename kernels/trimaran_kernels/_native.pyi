from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def detect_isa(cap: str = "auto") -> str:
    """Name of the implementation that runs: the best that the CPU, `cap` and TRIMARAN_ISA allow."""

def explain_isa(cap: str = "auto") -> str:
    """Which implementation was chosen, and why each better one was refused."""

def built_isas() -> list[str]:
    """Implementations in this build, best first."""

def cpu_features() -> list[str]:
    """Features of this CPU that matter to the kernels and that the operating system supports."""

def supported_types() -> list[tuple[int, str, int, int]]:
    """(GGUF type id, name, weights in a block, bytes of a block) of each type."""

class ThreadPool:
    """One thread per CPU of `cpus`, the calling thread being the first; all but it are pinned.

    Idle threads sleep. Loops from several callers run one after another.

    Raises:
        KernelError: no CPU, one twice, or one that this process may not use.
    """

    def __init__(self, cpus: Sequence[int]) -> None: ...
    def rest(self) -> None:
        """Let idle threads sleep at once, not after the 100 µs for which they expect more work."""

    @property
    def size(self) -> int: ...
    @property
    def cpus(self) -> list[int]: ...

def dequantize(ggml_type: int, raw: Any, n: int, isa: str = "auto") -> NDArray[np.float32]:
    """The first `n` weights of `raw` (uint8) as float32, exactly as the format defines them.

    Raises:
        KernelError: an unsupported type, too few bytes, or n no multiple of the block size.
    """

def packed_bytes(ggml_type: int, rows: int, columns: int) -> int | None:
    """Bytes of a matrix in the packed layout; None if its type or width has none.

    Raises:
        KernelError: rows < 0 or columns < 1.
    """

def pack(pool: ThreadPool, ggml_type: int, raw: Any, rows: int, columns: int, out: Any) -> None:
    """Rearrange a matrix of the file into the packed layout, bit for bit (kernels/csrc/packed/format.h).

    raw: uint8, `rows` × `columns` weights as `ggml_type`; out: uint8, of `packed_bytes` elements, written.
    Each matrix of a stack is packed by itself. Releases the GIL.

    Raises:
        KernelError: no packed layout, or an array of wrong dtype, length or layout.
    """

def linear(
    pool: ThreadPool, ggml_type: int, raw: Any, x: Any, out: Any, isa: str = "auto", packed: bool = False
) -> None:
    """out = x · Wᵀ with float32 activations, or int8 ones if W is packed.

    W has out.shape[1] rows of x.shape[1] weights, quantised in `raw` (uint8) as `ggml_type`. If W is packed,
    each 16 columns of x are rounded to int8 with one scale; the rest is exact up to float32 rounding.
    x: float32 [n, in]; out: float32 [n, out], written. n and out may be 0. Releases the GIL. A row of `out`
    depends on its row of x only, to the bit, whatever the number of threads.

    Raises:
        KernelError: an array of wrong dtype, shape or layout, or too few bytes in `raw`.
    """

class Linear:
    """A matrix ready to be multiplied with; see `linear`.

    Args:
        pool: threads to compute on; kept alive, as `raw` is.
        rows, columns: of the matrix.

    Raises:
        KernelError: an array of wrong dtype or layout, too few bytes, or no packed layout.
    """

    def __init__(
        self,
        pool: ThreadPool,
        ggml_type: int,
        raw: Any,
        rows: int,
        columns: int,
        isa: str = "auto",
        packed: bool = False,
    ) -> None: ...
    def __call__(self, x: Any, out: Any) -> None:
        """out = x · Wᵀ. x: float32 [n, columns]; out: float32 [n, rows], written. Releases the GIL.

        Raises:
            KernelError: an array of wrong dtype, shape or layout.
        """

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...

def read_memory(pool: ThreadPool, raw: Any) -> int:
    """XOR of the whole 64-bit words of `raw` (uint8, 8-aligned), read by all threads: a bandwidth probe.

    Raises:
        KernelError: `raw` is no aligned, contiguous uint8 array.
    """

class ExpertEngine:
    """The routed experts of a model's MoE layers, or of one shard of them.

    Args:
        pool: threads to compute on; kept alive.
        hidden: elements of a token's vector.
        intermediate: rows of an expert's gate and up matrices.
        n_experts: experts of the whole model; valid ids are below it.
        top_k: experts per token.
        max_tokens: most tokens of one call; scratch memory grows with the largest call seen.
        isa: best instruction set to use, see `detect_isa`.
        exact: round activations to 16 bits at least, and keep results independent of the other tokens. Packed
            layers are then multiplied by matrix tiles (`amx`) alone, and refused by `add_layer` elsewhere.

    Raises:
        KernelError: a dimension below 1 or an unknown instruction set.
    """

    def __init__(
        self,
        pool: ThreadPool,
        hidden: int,
        intermediate: int,
        n_experts: int,
        top_k: int,
        max_tokens: int = 4096,
        isa: str = "auto",
        exact: bool = False,
    ) -> None: ...
    def add_layer(
        self,
        layer: int,
        gate: tuple[int, Any] | tuple[int, Any, bool],
        up: tuple[int, Any] | tuple[int, Any, bool],
        down: tuple[int, Any] | tuple[int, Any, bool],
        first_expert: int,
        n_experts: int,
    ) -> None:
        """Take a layer's experts [first_expert, first_expert + n_experts).

        Each matrix is (GGUF type, uint8 array[, packed]). The arrays hold the experts one after another, gate
        and up [intermediate, hidden], down [hidden, intermediate] each: as they lie in the file, or each
        packed by `pack`. They are kept alive and read in place, never copied. Packed matrices compute with
        int8 activations (bf16 where matrix tiles multiply), others with float32 ones.

        Raises:
            KernelError: an unsupported type, rows that blocks do not divide, too few bytes, a bad range, or a
                layer that is there already.
        """

    def forward(self, layer: int, x: Any, ids: Any, weights: Any, y: Any) -> int:
        """y[t] = Σ_j weights[t, j] · down(silu(gate x[t]) · up x[t]) with the matrices of expert ids[t, j].

        x, y: [n, hidden], both float32 or both bfloat16 (torch, or its bits as numpy uint16); ids: int32
        [n, top_k]; weights: float32 [n, top_k]. Releases the GIL.
        Ids of other shards add nothing, so the shards' outputs can be summed; -1 adds nothing either, and its
        weight may be anything; an id may repeat. A NaN or
        infinity in x or weights shows in that token's y only. Experts are summed in the order of ids, so a
        token's result does not depend on the other tokens or on the number of threads, to the bit.

        Returns:
            A `trimaran.wire.Status` code: OK, or with y untouched BAD_LAYER, BAD_TOKEN_COUNT, BAD_EXPERT_ID
            or INTERNAL (out of memory).

        Raises:
            KernelError: an array of wrong dtype, shape or layout.
        """

    def has_layer(self, layer: int) -> bool: ...
    @property
    def hidden(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def n_experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def bytes_read(self) -> int:
        """Weight bytes that forward() has computed from since the engine was made."""

# --- the hop ------------------------------------------------------------------------------------------------

def arena_layout(
    hidden: int, top_k: int, max_tokens: int, n_slots: int, dtype: str
) -> tuple[int, int, int, int, int, int]:
    """Offsets of x, ids, weights and y in a slot, the slots' stride and the file's size, in bytes.

    Raises:
        KernelError: a dimension that no model has, or a dtype other than "f32" and "bf16".
    """

class HopArena:
    """An arena file, mapped: the client's end of the doorbell, and what the server's worker serves.

    Raises:
        KernelError: the file is missing, readable by others, no arena, or contradicts itself.
    """

    def __init__(self, path: str) -> None: ...
    @property
    def dims(self) -> tuple[int, int, int, int, str]:
        """Hidden size, top_k, max_tokens, n_slots, dtype ("f32" or "bf16")."""

    @property
    def lost(self) -> bool:
        """Whether its file was cut short since: it is empty memory now, and calls stay unanswered."""

    def ring(self, slot: int, sequence: int, layer: int, n_tokens: int) -> None:
        """Ask for the computation of what lies in the slot; `sequence` differs from the slot's last one."""

    def wait_done(self, slot: int, sequence: int, timeout_s: float) -> int | None:
        """The `wire.Status` code of request `sequence`, or None after `timeout_s`. Releases the GIL."""

    def begin_step(self) -> None:
        """Requests may come without `ring` from now on, from a GPU: the worker polls until `end_step`."""

    def end_step(self) -> None:
        """The worker may sleep again."""

    def abandon(self) -> None:
        """End the waits of a GPU that still expects an answer in this arena."""

    def put(self, slot: int, x: Any, ids: Any, weights: Any) -> int:
        """Write n tokens into a slot: x [n, hidden], ids int32 and weights float32 [n, top_k]; returns n.

        x is float32, or of the arena's type; a bf16 arena rounds float32 to the nearest, ties to even.

        Raises:
            KernelError: no such slot, too many tokens, or an array of wrong dtype, shape or layout.
        """

    def add(self, slot: int, y: Any) -> None:
        """y [n, hidden] float32 += the slot's answers for its first n tokens."""

class HopLine:
    """A session with one shard as its client keeps books of it: the free slots, and the sequences of calls.

    Args:
        first_slot: the slots before it are somebody else's.

    Raises:
        KernelError: no slot is left.
    """

    def __init__(self, arena: HopArena, first_slot: int = 0) -> None: ...
    @property
    def n_free(self) -> int:
        """Calls that may be started now."""

class HopCall:
    """A call of one layer on all shards, on its way. It gives its slots back when it goes."""

    @staticmethod
    def start(lines: Sequence[HopLine], layer: int, x: Any, ids: Any, weights: Any) -> HopCall | None:
        """Write the tokens to every shard, then ring; None, and nothing begun, if one has no free slot.

        x [n, hidden] float32, or of the arenas' type, ids int32 and weights float32 [n, top_k]; nothing is
        read after the return. Releases the GIL.

        Raises:
            KernelError: an array of wrong dtype, shape or layout, more tokens than a slot has, no line, or
                lines of different dimensions.
        """

    def collect(self, timeout_s: float, y: Any) -> int | None:
        """Wait for the answers; y [n, hidden] float32 becomes their sum, added in the order of the lines.

        The `wire.Status` code: OK once all are in y, another as soon as a shard answers it, None after
        `timeout_s`; the same y may then be waited for again. Releases the GIL.
        """

    @property
    def shard(self) -> int:
        """The line whose good answer the last `collect` did not get."""

    def abandon(self) -> None:
        """Nobody will wait any more: slots are free once their shards have answered. May be called twice."""

class Recorder:
    """A recording under way; it ends, and its file is whole, when nobody refers to it any more."""

    @property
    def calls(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def full(self) -> bool:
        """Whether calls are left out because the file has its size, or cannot be written to."""

class CallGate:
    """The way into an engine for calls that peers sent: checked, counted, one engine call after another.

    Calls that wait for the same layer share one engine call; what is wrong with one concerns no other.
    Calls of workers wait for another worker's if that is due and reads much the same experts, an eighth of
    their own time at most.

    Args:
        gathers: whether they may.
        rests: whether the engine's threads sleep when no call waits: no if the caller's next loop is theirs

    NOT_FINITE, BAD_LAYER, BAD_TOKEN_COUNT, BAD_EXPERT_ID and BAD_SLOT answer what is wrong with a call; y is
    untouched then. Any thread may call.
    """

    def __init__(self, engine: ExpertEngine, gathers: bool = True, rests: bool = True) -> None: ...
    def run_slot(self, arena: HopArena, slot: int, layer: int, n_tokens: int) -> int:
        """Compute one slot of an arena; a `wire.Status` code. Releases the GIL."""

    def run(self, layer: int, x: Any, ids: Any, weights: Any, y: Any) -> int:
        """The same for arrays, as `ExpertEngine.forward` takes them, of any number of tokens.

        Raises:
            KernelError: an array of wrong dtype, shape or layout.
        """

    def counters(self) -> dict[str, int]:
        """calls, failures, tokens, engine_calls, merged_calls, gather_waits, gather_ns, busy_ns, bytes_read
        since the start, and calls now waiting.

        ``busy_le_5000`` … ``busy_le_inf``: engine calls that took so many nanoseconds at most, and more than
        the bound before.
        """

    def latencies(self) -> dict[int, list[int]]:
        """By layer, engine calls by duration: counts in the order of the ``busy_le`` counters."""

    def record(self, path: str, max_bytes: int, fingerprint: str) -> Recorder:
        """Write the calls from now on to a fresh file of this user alone, up to its size.

        Raises:
            KernelError: the file is there already or cannot be made.
        """

    def stop_recording(self) -> None:
        """Write no more calls."""

    def calls_since(self, start_ns: int) -> list[tuple[int, int, int, int]]:
        """Layer, tokens, start and end of the last few thousand calls that ended since; times of
        `time.monotonic_ns`."""

    def expert_tokens(self) -> dict[int, list[int]]:
        """By layer, how many tokens of successful calls were routed to each expert, all shards' included."""

class ArenaWorker:
    """A native thread that serves one arena until it is stopped, asleep while there is nothing to do.

    Args:
        cpu: where the thread is pinned; negative: nowhere.

    Raises:
        KernelError: the arena's hidden size or top_k are not the engine's.
    """

    def __init__(self, arena: HopArena, gate: CallGate, cpu: int) -> None: ...
    def request_stop(self) -> None:
        """Let the call in flight finish, answer others SHUTTING_DOWN. Returns at once."""

    @property
    def finished(self) -> bool:
        """Whether the thread has ended."""

    def stop(self) -> None:
        """`request_stop`, then wait for the thread. Releases the GIL."""

# --- attention ----------------------------------------------------------------------------------------------

def latent_entry_bytes(kind: str, latent: int, rope: int) -> int:
    """Bytes of one token's entry in the cache of a layer.

    Kinds: f32, bf16: latent + rope values. fp8 (E4M3), int8: a byte for each value of the latent, a float32
    scale for each 128 of them, and the rotated key as bf16.

    Raises:
        KernelError: an unknown kind, or a dimension that no model has.
    """

class LatentPages:
    """One layer of the latent cache, written and read in place.

    Args:
        raw: uint8 [pages × page_tokens × latent_entry_bytes], writable; kept alive.
        kind: f32, bf16, fp8 or int8, see `latent_entry_bytes`.
        latent, rope: values of an entry; rope is even.
        page_tokens: entries of a page.

    Raises:
        KernelError: an array of wrong dtype, size or layout, or an unknown kind.
    """

    def __init__(self, raw: Any, kind: str, latent: int, rope: int, page_tokens: int) -> None: ...
    @property
    def n_pages(self) -> int: ...

def store_latents(
    pool: ThreadPool,
    pages: LatentPages,
    kv: Any,
    weight: Any,
    eps: float,
    cos: Any,
    sin: Any,
    slots: Any,
) -> None:
    """Normalise latents, rotate keys and store both in the cache.

    kv: float32 [n, latent + rope], as projected; weight: float32 [latent] and eps, of the RMS norm; cos, sin:
    float32 [n, rope / 2]; slots: int32 [n], page × page_tokens + offset. Releases the GIL.

    Raises:
        KernelError: an array of wrong dtype, shape or layout, or a slot that is not there.
    """

class LatentMaps:
    """Wkv_b of a layer, packed: a copy of k_b [heads, nope, latent] and v_b [heads, latent, value], float32.

    Either may come transposed in the file's blocks of Q8_0, uint8 [heads, latent, nope / 32 * 34] and [heads,
    value, latent / 32 * 34]. Then the copy keeps their codes and scales: a quarter of the bytes, and products
    with it have the bits of those with the same values in float32.

    Args:
        rounded: keep what comes in float32 as binary16, rounded to nearest: half the bytes, a relative error
            of 2^-12 at most for magnitudes from 2^-14 to 65504. Where there are matrix tiles, products of the
            expanded form round to bfloat16 then.

    Raises:
        KernelError: arrays of wrong dtype, layout, or shapes that do not fit each other.
    """

    def __init__(self, k_b: Any, v_b: Any, rounded: bool) -> None: ...
    @property
    def nbytes(self) -> int: ...

class Mla:
    """Multi-head latent attention over paged latents: scratch memory and threads that all layers share.

    Args:
        pool: threads to compute on; kept alive.
        heads, nope, rope, latent, value: dimensions.
        scale: on the scores.
        isa: best instruction set to use, see `detect_isa`.

    Raises:
        KernelError: a dimension below 1, an odd rope, or an unknown instruction set.
    """

    def __init__(
        self,
        pool: ThreadPool,
        heads: int,
        nope: int,
        rope: int,
        latent: int,
        value: int,
        scale: float,
        isa: str = "auto",
    ) -> None: ...
    def attend(
        self,
        maps: LatentMaps,
        q: Any,
        cos: Any,
        sin: Any,
        pages: LatentPages,
        segments: Any,
        page_table: Any,
        out: Any,
    ) -> None:
        """Causal attention of n new tokens, of several requests, whose entries are in the cache already.

        q: float32 [n, heads × (nope + rope)], not rotated; cos, sin: float32 [n, rope / 2]; out: float32
        [n, heads × value], of which the segments' rows are written. segments: int32 [s, 5], each with its
        first row, length, position of the first token in its request, first index in page_table, and whether
        to absorb (1) or to expand (0); page_table: int32, the requests' pages. Releases the GIL.

        A row depends on its query, on the entries it sees and on the form, to the bit: not on threads, on
        the batch, or on how a prompt is cut into chunks.

        Raises:
            KernelError: an array of wrong dtype, shape or layout, rows or pages that are not there.
        """

class GateRule:
    """How experts are chosen (GGUF `expert_*` keys).

    Args:
        softmax: scores are a softmax of the logits; else sigmoids.
        n_groups, n_groups_used: experts are chosen from the best groups only; 1 and 1: no groups.
        group_best: a group's score is the sum of its so many best.
        normalise: weights are divided by their sum, then multiplied by weights_scale.

    Raises:
        KernelError: numbers that contradict each other.
    """

    def __init__(
        self,
        *,
        n_experts: int,
        top_k: int,
        softmax: bool,
        n_groups: int,
        n_groups_used: int,
        group_best: int,
        normalise: bool,
        weights_scale: float,
    ) -> None: ...

class AttentionLayer:
    """All of one layer's latent attention: query, latents, their storage, `Mla.attend`, output.

    Args:
        pool, mla: threads, and the kernels that layers share; kept alive, as all that follows.
        query_down, query_norm: of queries with a LoRA: hidden → rank, and float32 [rank]; else None.
        query: hidden, or rank → heads × (nope + rope).
        kv, kv_norm: hidden → latent + rope, and float32 [latent].
        maps: Wkv_b.
        output: heads × value → hidden.
        eps: of the norms.

    Raises:
        KernelError: matrices that do not fit together.
    """

    def __init__(
        self,
        pool: ThreadPool,
        mla: Mla,
        query_down: Linear | None,
        query_norm: Any | None,
        query: Linear,
        kv: Linear,
        kv_norm: Any,
        maps: LatentMaps,
        output: Linear,
        eps: float,
    ) -> None: ...
    def __call__(
        self,
        x: Any,
        cos: Any,
        sin: Any,
        slots: Any,
        pages: LatentPages,
        segments: Any,
        page_table: Any,
        out: Any,
    ) -> None:
        """x, out: float32 [n, hidden], x normalised; the rest as of `store_latents` and `Mla.attend`.

        The same bits as these two and the matrices one by one. Releases the GIL.
        """

class Gate:
    """The gate of one layer: a product in float32, then what `route_tokens` does.

    Args:
        pool: threads to compute on; kept alive.
        rule: how experts are chosen.
        weight: float32 [experts, hidden]; kept alive.
        bias: float32 [experts] or None; it takes part in the choice only.

    Raises:
        KernelError: arrays that do not fit.
    """

    def __init__(
        self, pool: ThreadPool, rule: GateRule, weight: Any, bias: Any | None, isa: str = "auto"
    ) -> None: ...
    def __call__(self, x: Any, ids: Any, weights: Any) -> None:
        """x: float32 [n, hidden] → ids: int32, weights: float32, both [n, top_k].

        Releases the GIL.
        """

class DecoderLayer:
    """A block of the model: attention, then the feed-forward network, each behind a norm, beside a residual.

    Args:
        pool: threads to compute on; kept alive, as all parts.
        index: of the layer; by this number routed experts know it.
        attention: of the layer.
        input_norm, post_norm: float32 [hidden], before the attention and behind it.
        eps: of the norms.
        gate: to the routed experts, or None.
        always: layer 0 of an engine of one expert: the dense network or the shared experts; or None.

    Raises:
        KernelError: parts that do not fit together.
    """

    def __init__(
        self,
        pool: ThreadPool,
        index: int,
        attention: AttentionLayer,
        input_norm: Any,
        post_norm: Any,
        eps: float,
        gate: Gate | None,
        always: ExpertEngine | None,
    ) -> None: ...

class Decoder:
    """Layers one after another, in one call.

    Args:
        layers: kept alive.

    Raises:
        KernelError: no layers, or of different hidden sizes.
    """

    def __init__(self, layers: list[DecoderLayer]) -> None: ...
    def __call__(
        self,
        x: Any,
        cos: Any,
        sin: Any,
        slots: Any,
        pages: list[LatentPages],
        segments: Any,
        page_table: Any,
        experts: CallGate | None,
        times: Any,
        stop: Any,
    ) -> tuple[int, int]:
        """Compute a step; to the bit as the parts one by one. Releases the GIL.

        Args:
            x: float32 [n, hidden], changed in place.
            cos, sin, slots, segments, page_table: as of `AttentionLayer`.
            pages: of each layer.
            experts: the routed ones of all layers.
            times: int64 [layers, 5]: when attention, gate, routed experts and the others began, and the last
                ended, in nanoseconds of the monotonic clock.
            stop: int32 [1]; another thread may set it, which ends the call before the next layer.

        Returns:
            How many layers were computed, fewer than all if it was stopped, and 0 or the `wire.Status` code
            that ended it there.

        Raises:
            KernelError: arrays of wrong type, shape or layout, or no experts where layers need them.
        """

def route_tokens(
    pool: ThreadPool, rule: GateRule, logits: Any, bias: Any | None, ids: Any, weights: Any
) -> None:
    """Choose experts from logits: float32 [n, experts].

    ids: int32, weights: float32, both [n, top_k], written; bias: float32 [experts], added to
    the scores for the choice only. Best first; of equals, the lower id.

    Raises:
        KernelError: an array of wrong dtype, shape or layout.
    """

def rms_norm(pool: ThreadPool, x: Any, weight: Any, eps: float, out: Any) -> None:
    """out = x / sqrt(mean(x²) + eps) × weight, for rows of x: float32 [n, width]; out may be x.

    Raises:
        KernelError: an array of wrong dtype, shape or layout.
    """
