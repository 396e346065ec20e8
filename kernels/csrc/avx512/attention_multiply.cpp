#include "avx512/attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "avx512/lanes.h"
#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::avx512 {
namespace {

// So many rows of B (16 KiB of floats) stay in the first-level cache while all rows of A pass by. Two threads
// of a core share 48 KiB of it, or 32.
constexpr int64_t kDepth = 128;

// kRows rows × kVectors vectors of C in registers: 16 sums, twice what hides four cycles of two FMAs each.
// The last vector is whole or a half. An element of A is broadcast by its load, or within the FMA where it is
// needed once.
template <int kRows, int kVectors, bool kWhole, class Element>
inline void tile(const Product& p, const Element* b, int row, int64_t first, int64_t depth) {
  const float* a = p.a + row * p.a_row + first * p.a_column;
  b += first * p.ldb;
  float* c = p.c + row * p.ldc;
  const bool clear = first == 0 && !p.accumulate;
  constexpr int kLast = kVectors - 1;
  __m512 sums[kRows][kVectors];
  TRIMARAN_UNROLL_16
  for (int r = 0; r < kRows; ++r) {
    const float* old = c + r * p.ldc;
    TRIMARAN_UNROLL_8
    for (int v = 0; v < kLast; ++v) sums[r][v] = clear ? _mm512_setzero_ps() : load<true>(old + kWide * v);
    sums[r][kLast] = clear ? _mm512_setzero_ps() : load<kWhole>(old + kWide * kLast);
  }
  for (int64_t k = 0; k < depth; ++k, a += p.a_column, b += p.ldb) {
    __m512 right[kVectors];
    TRIMARAN_UNROLL_8
    for (int v = 0; v < kLast; ++v) right[v] = load<true>(b + kWide * v);
    right[kLast] = load<kWhole>(b + kWide * kLast);
    TRIMARAN_UNROLL_16
    for (int r = 0; r < kRows; ++r) {
      const __m512 left = _mm512_set1_ps(a[r * p.a_row]);
      TRIMARAN_UNROLL_8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_fmadd_ps(left, right[v], sums[r][v]);
    }
  }
  TRIMARAN_UNROLL_16
  for (int r = 0; r < kRows; ++r) {
    float* sum = c + r * p.ldc;
    TRIMARAN_UNROLL_8
    for (int v = 0; v < kLast; ++v) store<true>(sum + kWide * v, sums[r][v]);
    store<kWhole>(sum + kWide * kLast, sums[r][kLast]);
  }
}

// As many rows as tiles of kRows cover, then of half as many, and so on.
template <int kRows, int kVectors, bool kWhole, class Element>
inline void rows_from(const Product& p, const Element* b, int row, int64_t first, int64_t depth) {
  for (; row + kRows <= p.m; row += kRows) tile<kRows, kVectors, kWhole>(p, b, row, first, depth);
  if constexpr (kRows > 1) rows_from<kRows / 2, kVectors, kWhole>(p, b, row, first, depth);
}

template <int kRows, int kVectors, bool kWhole, class Element>
void all_rows(const Product& p, const Element* b) {
  for (int64_t first = 0; first < p.k; first += kDepth) {
    rows_from<kRows, kVectors, kWhole>(p, b, 0, first, std::min(kDepth, p.k - first));
  }
}

template <class Element>
void all_columns(const Product& p, const Element* b) {
  switch (p.n / 8) {
    case 1:
      return all_rows<16, 1, false>(p, b);
    case 2:
      return all_rows<16, 1, true>(p, b);
    case 3:
      return all_rows<8, 2, false>(p, b);
    default:
      return all_rows<8, 2, true>(p, b);
  }
}

}  // namespace

void multiply(const Product& product, const float* b) { all_columns(product, b); }

void multiply_half(const Product& product, const uint16_t* b) { all_columns(product, b); }

}  // namespace trimaran::avx512

TRIMARAN_TARGET_END

#endif
