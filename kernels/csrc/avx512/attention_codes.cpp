#include "avx512/attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "avx512/lanes.h"
#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::avx512 {
namespace {

template <bool kWhole>
inline __m512 scales_at(const uint8_t* p) {
  return _mm512_cvtph_ps(load_words<kWhole>(p));
}

// Code times scale, rounded nowhere.
template <bool kWhole>
inline __m512 elements(const uint8_t* codes, __m512 scales) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bytes<kWhole>(codes))), scales);
}

// kRows rows × kVectors vectors of C in registers, beside a block's scales. The last vector is whole or a
// half.
template <int kRows, int kVectors, bool kWhole>
void tile(const Product& p, const uint8_t* b, int row) {
  constexpr int kLast = kVectors - 1;
  const int64_t n = p.ldb;
  const float* a = p.a + row * p.a_row;
  float* c = p.c + row * p.ldc;
  __m512 sums[kRows][kVectors];
  TRIMARAN_UNROLL_8
  for (int r = 0; r < kRows; ++r) {
    const float* old = c + r * p.ldc;
    TRIMARAN_UNROLL_8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_ps();
    if (p.accumulate) {
      TRIMARAN_UNROLL_8
      for (int v = 0; v < kLast; ++v) sums[r][v] = load<true>(old + kWide * v);
      sums[r][kLast] = load<kWhole>(old + kWide * kLast);
    }
  }
  for (int64_t first = 0; first < p.k; first += kCodeRows, b += (kCodeRows + 2) * n) {
    const uint8_t* at = b + kCodeRows * n;
    __m512 scales[kVectors];
    TRIMARAN_UNROLL_8
    for (int v = 0; v < kLast; ++v) scales[v] = scales_at<true>(at + 2 * kWide * v);
    scales[kLast] = scales_at<kWhole>(at + 2 * kWide * kLast);
    for (int i = 0; i < kCodeRows; ++i, a += p.a_column) {
      const uint8_t* codes = b + i * n;
      __m512 right[kVectors];
      TRIMARAN_UNROLL_8
      for (int v = 0; v < kLast; ++v) right[v] = elements<true>(codes + kWide * v, scales[v]);
      right[kLast] = elements<kWhole>(codes + kWide * kLast, scales[kLast]);
      TRIMARAN_UNROLL_8
      for (int r = 0; r < kRows; ++r) {
        const __m512 left = _mm512_set1_ps(a[r * p.a_row]);
        TRIMARAN_UNROLL_8
        for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_fmadd_ps(left, right[v], sums[r][v]);
      }
    }
  }
  TRIMARAN_UNROLL_8
  for (int r = 0; r < kRows; ++r) {
    float* sum = c + r * p.ldc;
    TRIMARAN_UNROLL_8
    for (int v = 0; v < kLast; ++v) store<true>(sum + kWide * v, sums[r][v]);
    store<kWhole>(sum + kWide * kLast, sums[r][kLast]);
  }
}

// As many rows as tiles of kRows cover, then of half as many, and so on.
template <int kRows, int kVectors, bool kWhole>
void rows_from(const Product& p, const uint8_t* b, int row) {
  for (; row + kRows <= p.m; row += kRows) tile<kRows, kVectors, kWhole>(p, b, row);
  if constexpr (kRows > 1) rows_from<kRows / 2, kVectors, kWhole>(p, b, row);
}

template <bool kWhole>
void widen_columns(const uint8_t* codes, const uint8_t* scales_from, int n, float* dst) {
  const __m512 scales = scales_at<kWhole>(scales_from);
  for (int i = 0; i < kCodeRows; ++i) store<kWhole>(dst + i * n, elements<kWhole>(codes + i * n, scales));
}

}  // namespace

void multiply_codes(const Product& p, const uint8_t* b) {
  switch (p.n / 8) {
    case 1:
      return rows_from<8, 1, false>(p, b, 0);
    case 2:
      return rows_from<8, 1, true>(p, b, 0);
    case 3:
      return rows_from<4, 2, false>(p, b, 0);
    default:
      return rows_from<4, 2, true>(p, b, 0);
  }
}

void widen_codes(const uint8_t* src, int64_t blocks, int n, float* dst) {
  for (int64_t block = 0; block < blocks; ++block, src += (kCodeRows + 2) * n, dst += kCodeRows * n) {
    const uint8_t* scales = src + kCodeRows * n;
    int first = 0;
    for (; first + kWide <= n; first += kWide) {
      widen_columns<true>(src + first, scales + 2 * first, n, dst + first);
    }
    if (first < n) widen_columns<false>(src + first, scales + 2 * first, n, dst + first);
  }
}

}  // namespace trimaran::avx512

TRIMARAN_TARGET_END

#endif
