#include "avx2/decode.h"

#if defined(__x86_64__)

#include "avx2/vectors.h"
#include "quant/blocks.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

// Bit i of the four bytes as 0x10 in byte i.
__m256i fifth_bits(const uint8_t* qh) {
  int32_t word;
  std::memcpy(&word, qh, sizeof word);
  const __m256i source_byte =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i own_bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(word), source_byte);
  const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, own_bit), own_bit);
  return _mm256_and_si256(is_set, _mm256_set1_epi8(16));
}

void decode(const BlockQ4_0& block, float* dst) {
  const __m256i q = _mm256_sub_epi8(split_nibbles(block.qs), _mm256_set1_epi8(8));
  put_scaled(q, f16_at(block.d), dst);
}

void decode(const BlockQ4_1& block, float* dst) {
  put_affine(split_nibbles(block.qs), f16_at(block.d), -f16_at(block.m), dst);
}

void decode(const BlockQ5_0& block, float* dst) {
  const __m256i q = _mm256_or_si256(split_nibbles(block.qs), fifth_bits(block.qh));
  put_scaled(_mm256_sub_epi8(q, _mm256_set1_epi8(16)), f16_at(block.d), dst);
}

void decode(const BlockQ5_1& block, float* dst) {
  const __m256i q = _mm256_or_si256(split_nibbles(block.qs), fifth_bits(block.qh));
  put_affine(q, f16_at(block.d), -f16_at(block.m), dst);
}

void decode(const BlockQ8_0& block, float* dst) { put_scaled(load_32(block.qs), f16_at(block.d), dst); }

void decode(const BlockIQ4_NL& block, float* dst) {
  put_scaled(iq4_levels(split_nibbles(block.qs)), f16_at(block.d), dst);
}

template <class Block>
void decode_row(const uint8_t* src, int64_t n, float* dst) {
  const Block* block = reinterpret_cast<const Block*>(src);
  for (int64_t i = 0; i < n; i += 32) decode(*block++, dst + i);
}

void decode_f16(const uint8_t* src, int64_t n, float* dst) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(load_16(src + 2 * i)));
  for (; i < n; ++i) dst[i] = f16_at(src + 2 * i);
}

void decode_bf16(const uint8_t* src, int64_t n, float* dst) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16(src + 2 * i)), 16);
    _mm256_storeu_ps(dst + i, _mm256_castsi256_ps(wide));
  }
  for (; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(src[2 * i] | src[2 * i + 1] << 8) << 16;
    std::memcpy(dst + i, &bits, sizeof bits);
  }
}

}  // namespace

void fill_legacy_decoders(DecodeFn* table) {
  table[static_cast<int>(GgmlType::F16)] = decode_f16;
  table[static_cast<int>(GgmlType::BF16)] = decode_bf16;
  table[static_cast<int>(GgmlType::Q4_0)] = decode_row<BlockQ4_0>;
  table[static_cast<int>(GgmlType::Q4_1)] = decode_row<BlockQ4_1>;
  table[static_cast<int>(GgmlType::Q5_0)] = decode_row<BlockQ5_0>;
  table[static_cast<int>(GgmlType::Q5_1)] = decode_row<BlockQ5_1>;
  table[static_cast<int>(GgmlType::Q8_0)] = decode_row<BlockQ8_0>;
  table[static_cast<int>(GgmlType::IQ4_NL)] = decode_row<BlockIQ4_NL>;
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
