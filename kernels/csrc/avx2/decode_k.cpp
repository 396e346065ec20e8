#include "avx2/decode.h"

#if defined(__x86_64__)

#include "avx2/vectors.h"
#include "quant/blocks.h"
#include "quant/decode_k.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

uint32_t word_at(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

__m128i bytes_of(uint64_t low, uint64_t high) {
  return _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low));
}

uint64_t join(uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; }

// Scales of Q4_K and Q5_K as floats: [0, 8) d · scale, [8, 16) dmin · offset. See scalar::scale_min.
struct Scales {
  float values[16];

  Scales(const uint8_t* packed, float d, float dmin) {
    const uint32_t a = word_at(packed), b = word_at(packed + 4), c = word_at(packed + 8);
    const uint64_t scales = join(a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030));
    const uint64_t offsets = join(b & 0x3f3f3f3f, (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030));
    const __m128i bytes = bytes_of(scales, offsets);
    _mm256_storeu_ps(values, _mm256_mul_ps(_mm256_set1_ps(d), to_floats(bytes)));
    const __m256 mins = to_floats(_mm_srli_si128(bytes, 8));
    _mm256_storeu_ps(values + 8, _mm256_mul_ps(_mm256_set1_ps(dmin), mins));
  }

  float scale(int run) const { return values[run]; }
  float offset(int run) const { return values[8 + run]; }
};

// Sixteen signed scales times d.
struct Scales16 {
  float values[16];

  Scales16(__m128i scales, float d) { put_scaled(scales, d, values); }
  float operator[](int i) const { return values[i]; }
};

__m128i q3_scales(const uint8_t* packed) {
  const uint64_t low = join(word_at(packed), word_at(packed + 4));
  const uint32_t high = word_at(packed + 8);
  constexpr uint32_t kTwoBits = 0x03030303;
  const uint64_t first = (low & 0x0f0f0f0f0f0f0f0f) | join(high & kTwoBits, high >> 2 & kTwoBits) << 4;
  const uint64_t second = (low >> 4 & 0x0f0f0f0f0f0f0f0f) | join(high >> 4 & kTwoBits, high >> 6 & kTwoBits)
                                                                << 4;
  return _mm_sub_epi8(bytes_of(first, second), _mm_set1_epi8(32));
}

void decode(const BlockQ2_K& block, float* dst) {
  const __m128i packed = load_16(block.scales);
  const __m128i nibble = _mm_set1_epi8(15);
  const Scales16 scale(_mm_and_si128(packed, nibble), f16_at(block.d));
  const Scales16 offset(_mm_and_si128(_mm_srli_epi16(packed, 4), nibble), f16_at(block.dmin));
  TRIMARAN_UNROLL_8
  for (int run = 0; run < 8; ++run) {
    const __m256i q = field(load_32(block.qs + 32 * (run / 4)), 2 * (run % 4), 3);
    put_affine(low_half(q), scale[2 * run], offset[2 * run], dst + 32 * run);
    put_affine(high_half(q), scale[2 * run + 1], offset[2 * run + 1], dst + 32 * run + 16);
  }
}

void decode(const BlockQ3_K& block, float* dst) {
  const Scales16 scale(q3_scales(block.scales), f16_at(block.d));
  const __m256i hmask = load_32(block.hmask);
  TRIMARAN_UNROLL_8
  for (int run = 0; run < 8; ++run) {
    const __m256i low = field(load_32(block.qs + 32 * (run / 4)), 2 * (run % 4), 3);
    const __m256i four_if_set = raise(field(hmask, run, 1), 2);
    const __m256i q = _mm256_sub_epi8(_mm256_or_si256(low, four_if_set), _mm256_set1_epi8(4));
    put_scaled(low_half(q), scale[2 * run], dst + 32 * run);
    put_scaled(high_half(q), scale[2 * run + 1], dst + 32 * run + 16);
  }
}

void decode(const BlockQ4_K& block, float* dst) {
  const Scales scales(block.scales, f16_at(block.d), f16_at(block.dmin));
  for (int run = 0; run < 8; run += 2) {
    const __m256i bytes = load_32(block.qs + 16 * run);
    put_affine(field(bytes, 0, 15), scales.scale(run), scales.offset(run), dst + 32 * run);
    put_affine(field(bytes, 4, 15), scales.scale(run + 1), scales.offset(run + 1), dst + 32 * run + 32);
  }
}

void decode(const BlockQ5_K& block, float* dst) {
  const Scales scales(block.scales, f16_at(block.d), f16_at(block.dmin));
  const __m256i qh = load_32(block.qh);
  TRIMARAN_UNROLL_8
  for (int run = 0; run < 8; ++run) {
    const __m256i low = field(load_32(block.qs + 32 * (run / 2)), 4 * (run % 2), 15);
    const __m256i q = _mm256_or_si256(low, raise(field(qh, run, 1), 4));
    put_affine(q, scales.scale(run), scales.offset(run), dst + 32 * run);
  }
}

void decode(const BlockQ6_K& block, float* dst) {
  const Scales16 scale(load_16(block.scales), f16_at(block.d));
  TRIMARAN_UNROLL_8
  for (int run = 0; run < 8; ++run) {
    const __m256i low = field(load_32(block.ql + 64 * (run / 4) + 32 * (run % 2)), 4 * (run / 2 % 2), 15);
    const __m256i high = field(load_32(block.qh + 32 * (run / 4)), 2 * (run % 4), 3);
    const __m256i q = _mm256_sub_epi8(_mm256_or_si256(low, raise(high, 4)), _mm256_set1_epi8(32));
    put_scaled(low_half(q), scale[2 * run], dst + 32 * run);
    put_scaled(high_half(q), scale[2 * run + 1], dst + 32 * run + 16);
  }
}

void decode(const BlockIQ4_XS& block, float* dst) {
  const float d = f16_at(block.d);
  TRIMARAN_UNROLL_8
  for (int run = 0; run < 8; ++run) {
    const float scale = d * static_cast<float>(scalar::iq4_scale(block, run));
    put_scaled(iq4_levels(split_nibbles(block.qs + 16 * run)), scale, dst + 32 * run);
  }
}

template <class Block>
void decode_row(const uint8_t* src, int64_t n, float* dst) {
  const Block* block = reinterpret_cast<const Block*>(src);
  for (int64_t i = 0; i < n; i += 256) decode(*block++, dst + i);
}

}  // namespace

void fill_k_decoders(DecodeFn* table) {
  table[static_cast<int>(GgmlType::Q2_K)] = decode_row<BlockQ2_K>;
  table[static_cast<int>(GgmlType::Q3_K)] = decode_row<BlockQ3_K>;
  table[static_cast<int>(GgmlType::Q4_K)] = decode_row<BlockQ4_K>;
  table[static_cast<int>(GgmlType::Q5_K)] = decode_row<BlockQ5_K>;
  table[static_cast<int>(GgmlType::Q6_K)] = decode_row<BlockQ6_K>;
  table[static_cast<int>(GgmlType::IQ4_XS)] = decode_row<BlockIQ4_XS>;
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
