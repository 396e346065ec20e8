// Rows of eight floats to columns.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {

inline __m256 lanes_of(__m256 a, __m256 b, int which) {
  return which == 0 ? _mm256_permute2f128_ps(a, b, 0x20) : _mm256_permute2f128_ps(a, b, 0x31);
}

// dst[ldd · c + r] = src[lds · r + c]
inline void transpose_8x8(const float* src, int64_t lds, float* dst, int64_t ldd) {
  __m256 rows[8], pairs[8], quads[8];
  for (int i = 0; i < 8; ++i) rows[i] = _mm256_loadu_ps(src + i * lds);
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(dst + i * ldd, lanes_of(quads[i], quads[i + 4], 0));
    _mm256_storeu_ps(dst + (i + 4) * ldd, lanes_of(quads[i], quads[i + 4], 1));
  }
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END
