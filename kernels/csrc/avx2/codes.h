// Vectors of packed codes, as the AVX2 dot products use them.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "isa/target.h"
#include "quant/iq_tables.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {

inline __m128i load_16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i load_32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Each byte shifted right by `count` bits, then masked.
inline __m256i field(__m256i bytes, int count, int mask) {
  return _mm256_and_si256(_mm256_srli_epi16(bytes, count), _mm256_set1_epi8(static_cast<char>(mask)));
}

// 16 levels for shuffle_epi8, each xor `flip`.
inline __m256i levels(int flip) {
  const __m256i table = _mm256_broadcastsi128_si256(load_16(kIq4Levels));
  return _mm256_xor_si256(table, _mm256_set1_epi8(static_cast<char>(flip)));
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END
