#include "avx2/attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

inline __m256 scales_8(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// Code times scale, rounded nowhere.
inline __m256 elements_8(const uint8_t* codes, __m256 scales) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), scales);
}

// kRows rows × kVectors vectors of C: with two rows, eight sums and four scales stay in registers.
template <int kRows, int kVectors>
void tile(const Product& p, const uint8_t* b, int row) {
  constexpr int n = 8 * kVectors;
  const float* a = p.a + row * p.a_row;
  float* c = p.c + row * p.ldc;
  __m256 sums[kRows][kVectors];
  TRIMARAN_UNROLL_8
  for (int r = 0; r < kRows; ++r) {
    TRIMARAN_UNROLL_8
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = p.accumulate ? _mm256_loadu_ps(c + r * p.ldc + 8 * v) : _mm256_setzero_ps();
    }
  }
  for (int64_t first = 0; first < p.k; first += kCodeRows, b += (kCodeRows + 2) * n) {
    __m256 scales[kVectors];
    TRIMARAN_UNROLL_8
    for (int v = 0; v < kVectors; ++v) scales[v] = scales_8(b + kCodeRows * n + 16 * v);
    for (int i = 0; i < kCodeRows; ++i, a += p.a_column) {
      __m256 left[kRows];
      TRIMARAN_UNROLL_8
      for (int r = 0; r < kRows; ++r) left[r] = _mm256_broadcast_ss(a + r * p.a_row);
      TRIMARAN_UNROLL_8
      for (int v = 0; v < kVectors; ++v) {
        const __m256 right = elements_8(b + i * n + 8 * v, scales[v]);
        TRIMARAN_UNROLL_8
        for (int r = 0; r < kRows; ++r) sums[r][v] = _mm256_fmadd_ps(left[r], right, sums[r][v]);
      }
    }
  }
  TRIMARAN_UNROLL_8
  for (int r = 0; r < kRows; ++r) {
    TRIMARAN_UNROLL_8
    for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(c + r * p.ldc + 8 * v, sums[r][v]);
  }
}

template <int kVectors>
void all_rows(const Product& p, const uint8_t* b) {
  int row = 0;
  for (; row + 2 <= p.m; row += 2) tile<2, kVectors>(p, b, row);
  if (row < p.m) tile<1, kVectors>(p, b, row);
}

}  // namespace

void multiply_codes(const Product& p, const uint8_t* b) {
  switch (p.n / 8) {
    case 1:
      return all_rows<1>(p, b);
    case 2:
      return all_rows<2>(p, b);
    case 3:
      return all_rows<3>(p, b);
    default:
      return all_rows<4>(p, b);
  }
}

void widen_codes(const uint8_t* src, int64_t blocks, int n, float* dst) {
  for (int64_t block = 0; block < blocks; ++block, src += (kCodeRows + 2) * n) {
    for (int first = 0; first < n; first += 8) {
      const __m256 scales = scales_8(src + kCodeRows * n + 2 * first);
      for (int i = 0; i < kCodeRows; ++i) {
        _mm256_storeu_ps(dst + i * n + first, elements_8(src + i * n + first, scales));
      }
    }
    dst += kCodeRows * n;
  }
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
