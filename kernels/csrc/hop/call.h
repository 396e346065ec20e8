// One layer call, as it comes from a peer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/engine.h"

namespace trimaran::hop {

// In memory that a peer may still be writing to.
struct Call {
  int32_t layer;
  uint32_t n_tokens;
  const void* x;         // [n_tokens, hidden] of dtype
  const int32_t* ids;    // [n_tokens, top_k]
  const float* weights;  // [n_tokens, top_k]
  void* y;               // [n_tokens, hidden] of dtype
  DType dtype;
};

// Bytes of x, and of y.
inline size_t vector_bytes(const Call& call, int hidden) {
  return size_t{call.n_tokens} * static_cast<size_t>(hidden) * dtype_bytes(call.dtype);
}

}  // namespace trimaran::hop
