#include "avx2/attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

// So many rows of B (16 KiB of floats) stay in the first-level cache while all rows of A pass by.
constexpr int64_t kDepth = 128;

inline __m256 load_8(const float* p) { return _mm256_loadu_ps(p); }
inline __m256 load_8(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// kRows rows × kVectors vectors of C in registers: twelve sums hide the latency of FMA, and with one operand
// of the other side and the narrower side's all live, sixteen registers are just enough.
template <int kRows, int kVectors, class Element>
inline void tile(const Product& p, const Element* b, int row, int64_t first, int64_t depth) {
  const float* a = p.a + row * p.a_row + first * p.a_column;
  b += first * p.ldb;
  float* c = p.c + row * p.ldc;
  const bool clear = first == 0 && !p.accumulate;
  __m256 sums[kRows][kVectors];
  TRIMARAN_UNROLL_8
  for (int r = 0; r < kRows; ++r) {
    TRIMARAN_UNROLL_8
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = clear ? _mm256_setzero_ps() : _mm256_loadu_ps(c + r * p.ldc + 8 * v);
    }
  }
  for (int64_t k = 0; k < depth; ++k, a += p.a_column, b += p.ldb) {
    if constexpr (kRows <= kVectors) {
      __m256 left[kRows];
      TRIMARAN_UNROLL_8
      for (int r = 0; r < kRows; ++r) left[r] = _mm256_broadcast_ss(a + r * p.a_row);
      TRIMARAN_UNROLL_8
      for (int v = 0; v < kVectors; ++v) {
        const __m256 right = load_8(b + 8 * v);
        TRIMARAN_UNROLL_8
        for (int r = 0; r < kRows; ++r) sums[r][v] = _mm256_fmadd_ps(left[r], right, sums[r][v]);
      }
    } else {
      __m256 right[kVectors];
      TRIMARAN_UNROLL_8
      for (int v = 0; v < kVectors; ++v) right[v] = load_8(b + 8 * v);
      TRIMARAN_UNROLL_8
      for (int r = 0; r < kRows; ++r) {
        const __m256 left = _mm256_broadcast_ss(a + r * p.a_row);
        TRIMARAN_UNROLL_8
        for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm256_fmadd_ps(left, right[v], sums[r][v]);
      }
    }
  }
  TRIMARAN_UNROLL_8
  for (int r = 0; r < kRows; ++r) {
    TRIMARAN_UNROLL_8
    for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(c + r * p.ldc + 8 * v, sums[r][v]);
  }
}

// The rows that are left after tiles of kRows.
template <int kRows, int kVectors, class Element>
inline void last_rows(const Product& p, const Element* b, int row, int64_t first, int64_t depth) {
  if constexpr (kRows > 0) {
    if (p.m - row == kRows) return tile<kRows, kVectors>(p, b, row, first, depth);
    last_rows<kRows - 1, kVectors>(p, b, row, first, depth);
  }
}

template <int kRows, int kVectors, class Element>
void all_rows(const Product& p, const Element* b) {
  for (int64_t first = 0; first < p.k; first += kDepth) {
    const int64_t depth = std::min(kDepth, p.k - first);
    int row = 0;
    for (; row + kRows <= p.m; row += kRows) tile<kRows, kVectors>(p, b, row, first, depth);
    last_rows<kRows - 1, kVectors>(p, b, row, first, depth);
  }
}

template <class Element>
void all_columns(const Product& p, const Element* b) {
  switch (p.n / 8) {
    case 1:
      return all_rows<8, 1>(p, b);
    case 2:
      return all_rows<6, 2>(p, b);
    case 3:
      return all_rows<4, 3>(p, b);
    default:
      return all_rows<3, 4>(p, b);
  }
}

}  // namespace

void multiply(const Product& product, const float* b) { all_columns(product, b); }

void multiply_half(const Product& product, const uint16_t* b) { all_columns(product, b); }

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
