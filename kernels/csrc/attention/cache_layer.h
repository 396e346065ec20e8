// One layer of the paged latent cache, and a request's place in it.
#pragma once

#include <cstdint>

#include "attention/primitives.h"

namespace trimaran {

// Pages of `page_tokens` entries each, one after another.
struct CacheLayer {
  uint8_t* data;
  EntryShape shape;
  int64_t n_pages;
  int page_tokens;

  uint8_t* entry(int64_t slot) const { return data + static_cast<size_t>(slot) * shape.bytes(); }
};

// Consecutive tokens of one request in a step. Its pages cover position + length tokens.
struct Segment {
  int64_t first_row;  // of the step's tokens
  int64_t length;
  int64_t position;  // of its first token in the request
  const int32_t* pages;
  bool absorbed;  // which form of the arithmetic

  int64_t visible() const { return position + length; }
};

// Entries [first, first + tokens) of a request as floats: [tokens, shape.width()].
inline void decode_tile(const AttentionPrimitives& primitives, const CacheLayer& cache,
                        const Segment& segment, int64_t first, int tokens, float* dst) {
  for (int t = 0; t < tokens; ++t) {
    const int64_t position = first + t;
    const int64_t slot =
        static_cast<int64_t>(segment.pages[position / cache.page_tokens]) * cache.page_tokens +
        position % cache.page_tokens;
    primitives.decode_entry(cache.shape, cache.entry(slot), dst + t * cache.shape.width());
  }
}

// A step's queries [n, heads, nope + rope], not rotated, and the angles of their positions [n, rope / 2].
struct Queries {
  const float* data;
  const float* cos;
  const float* sin;
};

// Rotates `pairs` pairs (x0, x1), (x2, x3), … by their angles.
inline void rotate(const float* x, const float* cos, const float* sin, int pairs, float* dst) {
  for (int i = 0; i < pairs; ++i) {
    const float even = x[2 * i], odd = x[2 * i + 1];
    dst[2 * i] = even * cos[i] - odd * sin[i];
    dst[2 * i + 1] = odd * cos[i] + even * sin[i];
  }
}

}  // namespace trimaran
