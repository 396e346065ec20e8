// The operations that each instruction set implements; the algorithms above them (runtime/) are shared.
#pragma once

#include <cstdint>

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

struct AttentionPrimitives;  // attention/primitives.h

struct Primitives {
  const char* name;
  DecodeFn decode[kTypeSlots];  // by GgmlType; nullptr where there is no such type
  AccumulateFn accumulate;
  const AttentionPrimitives* attention;

  DecodeFn decoder(GgmlType type) const { return decode[static_cast<int>(type)]; }
};

}  // namespace trimaran
