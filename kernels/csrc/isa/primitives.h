// The operations that each instruction set implements; the algorithms above them (runtime/) are shared.
#pragma once

#include <cstdint>

#include "packed/activations.h"
#include "quant/types.h"

namespace trimaran {

// Decodes n weights (a multiple of the type's block size) from src to dst, exactly: the same float32
// operations in the same order on every instruction set.
using DecodeFn = void (*)(const uint8_t* src, int64_t n, float* dst);

// One step of a panel of dot products over k columns (a multiple of 8):
//   acc[row][token][lane] += Σ w[row][c] · x[token][c] over columns c ≡ lane (mod kLanes), in ascending
//   order.
// w: rows × ldw floats; x: `tokens` pointers; acc: rows × tokens × kLanes floats.
// The order does not depend on how many rows or tokens share the call.
struct Panel {
  const float* w;
  int64_t ldw;
  int rows;
  const float* const* x;
  int tokens;
  int64_t k;
};
using AccumulateFn = void (*)(const Panel& panel, float* acc);

constexpr int kLanes = 8;

// Quantises whole groups of 32 columns of x into the groups of `slot` from first_group on, each half by
// itself (packed/activations.h). A half with a NaN or infinity gets a scale of NaN. The same to the bit on
// every instruction set: x · (levels / max |x|) rounded to nearest even, squared errors added as ((0 + 1) +
// (2 + 3)) + ((4 + 5) + (6 + 7)) of lanes c and c + 8.
using QuantizeFn = void (*)(const float* x, int64_t columns, int64_t first_group, const QuantizedSlot& slot);

// out[i] = gate[i] / (1 + e^-gate[i]) · up[i] for i < n, the same to the bit on every instruction set
// (generic/activate.h), with a relative error of at most 4.8e-7 while gate ≥ -87; below, the result
// is at most 1e-38 |gate|. NaN stays NaN, and what is infinite is not finite after it.
using ActivateFn = void (*)(const float* gate, const float* up, int64_t n, float* out);

// One packed stripe of n_cells times `tokens` vectors: out[16 token + row]. Each row's sum y is built cell by
// cell:
//   integer scales:  t = Σ over halves h of float(scale · Σ number · code) · x.scales[h]   by fma from 0
//                    u = Σ over scales s of float(offset) · x.sums (or halves)[s]          by fma from 0
//                    y = fma(t, super-scale, y), then fma(-u, super-offset, y)
//   f16 scales, for each group:
//                    t = Σ over its halves h of float(Σ number · code) · x.scales[h]       by fma from 0
//                    y = fma(t, scale, y), then fma(offset, x.sums[g], y)
// That order makes the result the same, to the bit, on every instruction set and in any batch. `next` is the
// stripe that is likely to be read after this one, prefetched towards the end; nullptr: what lies behind.
using DotFn = void (*)(const uint8_t* stripe, int64_t n_cells, const QuantizedVector* x, int tokens,
                       float* out, const uint8_t* next);

struct AttentionPrimitives;  // attention/primitives.h
struct TilePrimitives;       // isa/tiles.h

struct Primitives {
  const char* name;
  DecodeFn decode[kTypeSlots];  // by GgmlType; nullptr where there is no such type
  AccumulateFn accumulate;
  QuantizeFn quantize;
  ActivateFn activate;
  DotFn dot[kTypeSlots];  // nullptr where there is no packed layout
  const AttentionPrimitives* attention;
  const TilePrimitives* tiles;  // nullptr where there are no matrix tiles

  DecodeFn decoder(GgmlType type) const { return decode[static_cast<int>(type)]; }
};

}  // namespace trimaran
