#include "avx2/decode.h"

#if defined(__x86_64__)

#include "avx2/vectors.h"
#include "quant/blocks.h"
#include "quant/half.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

// The sign bit of lane i set where bit i of `signs` is.
__m256i sign_masks(int signs) {
  const __m256i own_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i is_set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(signs), own_bit), own_bit);
  return _mm256_slli_epi32(is_set, 31);
}

void put_signed(uint64_t row, int signs, float scale, float* dst) {
  const __m256 grid = to_floats(_mm_cvtsi64_si128(static_cast<int64_t>(row)));
  const __m256 magnitude = _mm256_mul_ps(_mm256_set1_ps(scale), grid);
  _mm256_storeu_ps(dst, _mm256_xor_ps(magnitude, _mm256_castsi256_ps(sign_masks(signs))));
}

void put_signed(uint32_t row, int signs, float scale, float* dst) {
  const __m128 grid = _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(static_cast<int32_t>(row))));
  const __m128 magnitude = _mm_mul_ps(_mm_set1_ps(scale), grid);
  _mm_storeu_ps(dst, _mm_xor_ps(magnitude, _mm_castsi128_ps(low_half(sign_masks(signs)))));
}

void put_shifted(uint64_t row, bool negative, float scale, float* dst) {
  const __m256 grid = to_floats(_mm_cvtsi64_si128(static_cast<int64_t>(row)));
  const __m256 shifted = _mm256_add_ps(grid, _mm256_set1_ps(negative ? -0.125f : 0.125f));
  _mm256_storeu_ps(dst, _mm256_mul_ps(_mm256_set1_ps(scale), shifted));
}

#include "quant/decode_iq.inl"

template <class Block>
void decode_row(const uint8_t* src, int64_t n, float* dst) {
  const Block* block = reinterpret_cast<const Block*>(src);
  for (int64_t i = 0; i < n; i += 256) decode(*block++, dst + i);
}

}  // namespace

void fill_grid_decoders(DecodeFn* table) {
  table[static_cast<int>(GgmlType::IQ2_XXS)] = decode_row<BlockIQ2_XXS>;
  table[static_cast<int>(GgmlType::IQ2_XS)] = decode_row<BlockIQ2_XS>;
  table[static_cast<int>(GgmlType::IQ2_S)] = decode_row<BlockIQ2_S>;
  table[static_cast<int>(GgmlType::IQ3_XXS)] = decode_row<BlockIQ3_XXS>;
  table[static_cast<int>(GgmlType::IQ3_S)] = decode_row<BlockIQ3_S>;
  table[static_cast<int>(GgmlType::IQ1_S)] = decode_row<BlockIQ1_S>;
  table[static_cast<int>(GgmlType::IQ1_M)] = decode_row<BlockIQ1_M>;
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
