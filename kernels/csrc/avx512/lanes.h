// Whole vectors of 16 elements, or of 8: attention counts in eights, so that a row may end with half a
// vector.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::avx512 {

constexpr int kWide = 16;
constexpr __mmask16 kHalfMask = 0x00ff;

// With kWhole 16 elements, else 8: nothing behind them is touched, and the other lanes become 0.

template <bool kWhole>
inline __m512 load(const float* p) {
  if constexpr (kWhole) return _mm512_loadu_ps(p);
  return _mm512_maskz_loadu_ps(kHalfMask, p);
}

template <bool kWhole>
inline __m256i load_words(const void* p) {
  if constexpr (kWhole) return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  return _mm256_maskz_loadu_epi16(kHalfMask, p);
}

template <bool kWhole>
inline __m128i load_bytes(const uint8_t* p) {
  if constexpr (kWhole) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
}

// Binary16 to floats.
template <bool kWhole>
inline __m512 load(const uint16_t* p) {
  return _mm512_cvtph_ps(load_words<kWhole>(p));
}

template <bool kWhole>
inline void store(float* p, __m512 v) {
  if constexpr (kWhole) {
    _mm512_storeu_ps(p, v);
  } else {
    _mm512_mask_storeu_ps(p, kHalfMask, v);
  }
}

}  // namespace trimaran::avx512

TRIMARAN_TARGET_END
