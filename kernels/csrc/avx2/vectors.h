// Small vector operations that the AVX2 decoders share.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "avx2/codes.h"
#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {

inline float f16_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return _cvtsh_ss(bits);
}

inline __m128i low_half(__m256i v) { return _mm256_castsi256_si128(v); }
inline __m128i high_half(__m256i v) { return _mm256_extracti128_si256(v, 1); }

// The low eight signed bytes as floats.
inline __m256 to_floats(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }

// 16 bytes as 32 nibbles: the low ones first, then the high ones.
inline __m256i split_nibbles(const uint8_t* p) {
  const __m128i bytes = load_16(p);
  const __m256i both = _mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

// Each byte shifted left by `count` bits; no bit may leave its byte.
inline __m256i raise(__m256i bytes, int count) { return _mm256_slli_epi16(bytes, count); }

inline __m256i iq4_levels(__m256i nibbles) { return _mm256_shuffle_epi8(levels(0), nibbles); }

// dst[i] = d · q[i] for 16 weights.
inline void put_scaled(__m128i q, float d, float* dst) {
  const __m256 scale = _mm256_set1_ps(d);
  _mm256_storeu_ps(dst, _mm256_mul_ps(scale, to_floats(q)));
  _mm256_storeu_ps(dst + 8, _mm256_mul_ps(scale, to_floats(_mm_srli_si128(q, 8))));
}

// dst[i] = d · q[i] - m for 16 weights. Two roundings: fused, it would differ from the format's definition.
inline void put_affine(__m128i q, float d, float m, float* dst) {
  const __m256 scale = _mm256_set1_ps(d);
  const __m256 offset = _mm256_set1_ps(m);
  _mm256_storeu_ps(dst, _mm256_sub_ps(_mm256_mul_ps(scale, to_floats(q)), offset));
  const __m256 upper = to_floats(_mm_srli_si128(q, 8));
  _mm256_storeu_ps(dst + 8, _mm256_sub_ps(_mm256_mul_ps(scale, upper), offset));
}

// The same for 32 weights of one scale.
inline void put_scaled(__m256i q, float d, float* dst) {
  put_scaled(low_half(q), d, dst);
  put_scaled(high_half(q), d, dst + 16);
}

inline void put_affine(__m256i q, float d, float m, float* dst) {
  put_affine(low_half(q), d, m, dst);
  put_affine(high_half(q), d, m, dst + 16);
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END
