#include "avx512/attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "avx512/lanes.h"
#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::avx512 {
namespace {

void widen_half(const uint16_t* src, int64_t n, float* dst) {
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide) store<true>(dst + i, load<true>(src + i));
  if (i < n) store<false>(dst + i, load<false>(src + i));
}

inline __m256i eight_floats(const float* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

// Eight columns of a row, and with kBoth those of the eighth row after it behind them.
template <bool kBoth>
inline __m512 two_rows(const float* src, int64_t lds) {
  __m512i rows = _mm512_zextsi256_si512(eight_floats(src));
  if constexpr (kBoth) rows = _mm512_inserti64x4(rows, eight_floats(src + 8 * lds), 1);
  return _mm512_castsi512_ps(rows);
}

// Both halves of a vector are the same half of a different 8 × 8 block, transposed side by side.
template <bool kBoth>
void transpose_8_columns(const float* src, int64_t lds, float* dst, int64_t ldd) {
  const __m512i even = _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0);
  const __m512i odd = _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2);
  __m512 rows[8], pairs[8];
  __m512i quads[8];
  TRIMARAN_UNROLL_8
  for (int i = 0; i < 8; ++i) rows[i] = two_rows<kBoth>(src + i * lds, lds);
  TRIMARAN_UNROLL_8
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  TRIMARAN_UNROLL_8
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm512_castps_si512(_mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44));
    quads[i + 1] = _mm512_castps_si512(_mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee));
    quads[i + 2] = _mm512_castps_si512(_mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44));
    quads[i + 3] = _mm512_castps_si512(_mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee));
  }
  TRIMARAN_UNROLL_8
  for (int i = 0; i < 4; ++i) {
    const __m512i upper = _mm512_permutex2var_epi64(quads[i], even, quads[i + 4]);
    const __m512i lower = _mm512_permutex2var_epi64(quads[i], odd, quads[i + 4]);
    store<kBoth>(dst + i * ldd, _mm512_castsi512_ps(upper));
    store<kBoth>(dst + (i + 4) * ldd, _mm512_castsi512_ps(lower));
  }
}

void transpose(const float* src, int64_t lds, int64_t rows, int64_t columns, float* dst, int64_t ldd) {
  for (int64_t c = 0; c < columns; c += 8) {
    int64_t r = 0;
    for (; r + kWide <= rows; r += kWide) {
      transpose_8_columns<true>(src + r * lds + c, lds, dst + c * ldd + r, ldd);
    }
    if (r < rows) transpose_8_columns<false>(src + r * lds + c, lds, dst + c * ldd + r, ldd);
  }
}

// What a cache's elements are as floats, 16 or 8 at a time.

struct Bf16 {
  template <bool kWhole>
  static __m512 load(const uint8_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_words<kWhole>(p)), 16));
  }
};

struct Int8 {
  template <bool kWhole>
  static __m512 load(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bytes<kWhole>(p)));
  }
};

// E4M3's exponent and mantissa are the upper bits of binary16's, 8 below in bias. Codes of NaN never occur.
struct Fp8 {
  template <bool kWhole>
  static __m512 load(const uint8_t* p) {
    const __m256i codes = _mm256_cvtepu8_epi16(load_bytes<kWhole>(p));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0x80)), 8);
    const __m256i rest = _mm256_slli_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0x7f)), 7);
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(sign, rest)), _mm512_set1_ps(256.0f));
  }
};

void decode_bf16(const uint8_t* src, int n, float* dst) {
  int i = 0;
  for (; i + kWide <= n; i += kWide) store<true>(dst + i, Bf16::load<true>(src + 2 * i));
  if (i < n) store<false>(dst + i, Bf16::load<false>(src + 2 * i));
}

inline __m512 scale_at(const EntryShape& shape, const uint8_t* entry, int i) {
  float scale;
  std::memcpy(&scale, entry + shape.scales_at() + 4 * (i / kScaleGroup), sizeof scale);
  return _mm512_set1_ps(scale);
}

// Groups that share a scale are whole vectors, but for the last.
template <class Element>
void decode_codes(const EntryShape& shape, const uint8_t* entry, float* dst) {
  static_assert(kScaleGroup % kWide == 0);
  int i = 0;
  for (; i + kWide <= shape.latent; i += kWide) {
    store<true>(dst + i, _mm512_mul_ps(Element::template load<true>(entry + i), scale_at(shape, entry, i)));
  }
  if (i < shape.latent) {
    store<false>(dst + i, _mm512_mul_ps(Element::template load<false>(entry + i), scale_at(shape, entry, i)));
  }
}

}  // namespace

void decode_entry(const EntryShape& shape, const uint8_t* entry, float* dst) {
  if (shape.latent % 8 != 0 || shape.rope % 8 != 0 || shape.format == EntryFormat::f32) {
    return trimaran::decode_entry(shape, entry, dst);
  }
  if (shape.format == EntryFormat::bf16) return decode_bf16(entry, shape.latent + shape.rope, dst);
  if (shape.format == EntryFormat::fp8) {
    decode_codes<Fp8>(shape, entry, dst);
  } else {
    decode_codes<Int8>(shape, entry, dst);
  }
  decode_bf16(entry + shape.rope_at(), shape.rope, dst + shape.latent);
}

const AttentionPrimitives& attention_primitives() {
  static const AttentionPrimitives instance{"avx512",    multiply,  multiply_half, multiply_codes, widen_half,
                                            widen_codes, transpose, decode_entry,  softmax,        nullptr};
  return instance;
}

}  // namespace trimaran::avx512

TRIMARAN_TARGET_END

#endif
