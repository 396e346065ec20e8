"""Words that a GPU and a CPU both look at: stores and loads with an order that holds for the whole system.

A plain store and a plain load, never an atomic read-modify-write: across PCIe these are atomic for the GPU
only, and would overwrite what the CPU writes meanwhile. In Triton's interpreter a CPU's own order is enough.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def store_release(pointer, value):
    """*pointer = value (32 bits), by one thread, after everything that this program wrote before."""
    tl.debug_barrier()
    if INTERPRETED:
        tl.atomic_xchg(pointer, value, sem="release", scope="sys")
    else:
        tl.inline_asm_elementwise(
            """{
            .reg .pred first;
            .reg .b32 thread;
            mov.u32 thread, %tid.x;
            setp.eq.u32 first, thread, 0;
            @first st.release.sys.global.b32 [$1], $2;
            mov.b32 $0, 0;
            }""",
            "=r,l,r,~{memory}",
            [pointer.to(tl.int64), value],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def load_acquire(pointer):
    """*pointer (int32), before everything that this program reads afterwards."""
    if INTERPRETED:
        return tl.load(pointer, volatile=True)
    else:
        return tl.inline_asm_elementwise(
            "ld.acquire.sys.global.b32 $0, [$1];",
            "=r,l,~{memory}",
            [pointer.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def nanoseconds():
    """The GPU's clock, all of its multiprocessors' (int64); 0 in the interpreter."""
    if INTERPRETED:
        return tl.full([], 0, tl.int64)
    else:
        return tl.inline_asm_elementwise(
            "mov.u64 $0, %globaltimer;", "=l,~{memory}", [], dtype=tl.int64, is_pure=False, pack=1
        )
