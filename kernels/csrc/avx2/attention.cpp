#include "avx2/attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "avx2/transpose.h"
#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

void widen_half(const uint16_t* src, int64_t n, float* dst) {
  for (int64_t i = 0; i < n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i));
    _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(half));
  }
}

void transpose(const float* src, int64_t lds, int64_t rows, int64_t columns, float* dst, int64_t ldd) {
  for (int64_t c = 0; c < columns; c += 8) {
    for (int64_t r = 0; r < rows; r += 8) transpose_8x8(src + r * lds + c, lds, dst + c * ldd + r, ldd);
  }
}

inline __m256 bf16_8(const uint8_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline __m256 int8_8(const uint8_t* p) {
  const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}

// E4M3's exponent and mantissa are the upper bits of binary16's, 8 below in bias. Codes of NaN never occur.
inline __m256 fp8_8(const uint8_t* p) {
  const __m128i codes = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(codes, _mm_set1_epi16(0x80)), 8);
  const __m128i rest = _mm_slli_epi16(_mm_and_si128(codes, _mm_set1_epi16(0x7f)), 7);
  return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(sign, rest)), _mm256_set1_ps(256.0f));
}

void decode_bf16(const uint8_t* src, int n, float* dst) {
  for (int i = 0; i < n; i += 8) _mm256_storeu_ps(dst + i, bf16_8(src + 2 * i));
}

template <__m256 (*kLoad)(const uint8_t*)>
void decode_codes(const EntryShape& shape, const uint8_t* entry, float* dst) {
  for (int i = 0; i < shape.latent; i += 8) {
    float scale;
    std::memcpy(&scale, entry + shape.scales_at() + 4 * (i / kScaleGroup), sizeof scale);
    _mm256_storeu_ps(dst + i, _mm256_mul_ps(kLoad(entry + i), _mm256_set1_ps(scale)));
  }
}

}  // namespace

void decode_entry(const EntryShape& shape, const uint8_t* entry, float* dst) {
  if (shape.latent % 8 != 0 || shape.rope % 8 != 0 || shape.format == EntryFormat::f32) {
    return trimaran::decode_entry(shape, entry, dst);
  }
  float* rope = dst + shape.latent;
  if (shape.format == EntryFormat::bf16) return decode_bf16(entry, shape.latent + shape.rope, dst);
  if (shape.format == EntryFormat::fp8) {
    decode_codes<fp8_8>(shape, entry, dst);
  } else {
    decode_codes<int8_8>(shape, entry, dst);
  }
  decode_bf16(entry + shape.rope_at(), shape.rope, rope);
}

const AttentionPrimitives& attention_primitives() {
  static const AttentionPrimitives instance{"avx2",      multiply,  multiply_half, multiply_codes, widen_half,
                                            widen_codes, transpose, decode_entry,  softmax,        nullptr};
  return instance;
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
