// The client's end of a slot: tokens in, answers out, converted on the way.
#pragma once

#include <cstdint>

#include "hop/arena.h"

namespace trimaran::hop {

// Writes n ≤ max_tokens tokens into a slot. x: [n, hidden], f32 or of the arena's type; ids, weights:
// [n, top_k].
void put_tokens(const Arena& arena, uint32_t slot, uint32_t n, const void* x, DType dtype, const int32_t* ids,
                const float* weights);

// y[t] = the slot's answer for token t < n ≤ max_tokens; y: [n, hidden] f32.
void take_answer(const Arena& arena, uint32_t slot, uint32_t n, float* y);

// The same, added to what y holds.
void add_answer(const Arena& arena, uint32_t slot, uint32_t n, float* y);

}  // namespace trimaran::hop
