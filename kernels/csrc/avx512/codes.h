// Packed codes and scales as vectors of 16 rows. A vector of codes has 4 columns of each row, side by side.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "isa/target.h"
#include "packed/format.h"
#include "quant/iq_tables.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::avx512 {

inline __m512i load_64(const void* p) { return _mm512_loadu_si512(p); }
inline __m256i load_32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i load_16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

// The kBits bits of each byte from bit kFrom on, moved to bit kTo.
template <int kFrom, int kTo, int kBits>
inline __m512i field(__m512i bytes) {
  if constexpr (kFrom > kTo) bytes = _mm512_srli_epi16(bytes, kFrom - kTo);
  if constexpr (kFrom < kTo) bytes = _mm512_slli_epi16(bytes, kTo - kFrom);
  return _mm512_and_si512(bytes, _mm512_set1_epi8(static_cast<char>(((1 << kBits) - 1) << kTo)));
}

// A vector of a fourth run: the upper two bits of three.
inline __m512i gathered(const uint8_t* run) {
  const __m512i low = field<6, 0, 2>(load_64(run));
  const __m512i middle = field<6, 2, 2>(load_64(run + kRunBytes));
  return _mm512_or_si512(_mm512_or_si512(low, middle), field<6, 4, 2>(load_64(run + 2 * kRunBytes)));
}

// Vector kVector of group g, whose low codes stand kSlot-th in their bytes.
template <class Tag, int kSlot, int kVector>
inline __m512i codes_at(const uint8_t* cell, int g) {
  constexpr const Format& f = Tag::format;
  const uint8_t* run = cell + f.low_run(g) + kVector * kVectorBytes;
  __m512i codes = f.scattered(g) ? gathered(run) : load_64(run);
  if constexpr (f.low_bits < 8) codes = field<kSlot * f.low_bits, 0, f.low_bits>(codes);
  if constexpr (f.high_bits > 0) {
    const __m512i plane = load_64(cell + f.high_at() + g * kVectorBytes);
    codes = _mm512_or_si512(codes, field<kVector, f.low_bits, 1>(plane));
  }
  return codes;
}

// What unsigned(codes) adds to each number.
constexpr int bias_of(const Format& f) { return f.kind == CodeKind::centered ? f.center : 128; }

// 16 levels for shuffle_epi8, each xor `flip`.
inline __m512i levels(int flip) {
  const __m512i table = _mm512_broadcast_i32x4(load_16(kIq4Levels));
  return _mm512_xor_si512(table, _mm512_set1_epi8(static_cast<char>(flip)));
}

// number + bias_of(format), from 0 to 255.
template <class Tag>
inline __m512i biased_numbers(__m512i codes) {
  constexpr const Format& f = Tag::format;
  if constexpr (f.kind == CodeKind::bytes) return _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
  if constexpr (f.kind == CodeKind::levels) return _mm512_shuffle_epi8(levels(0x80), codes);
  return codes;
}

// 16 f16 as floats.
inline __m512 halves_at(const uint8_t* halves) { return _mm512_cvtph_ps(load_32(halves)); }

// The integer scales s of a cell's rows.
template <class Tag>
inline __m512 integer_scales(const uint8_t* cell, int s) {
  constexpr const Format& f = Tag::format;
  __m512i words = _mm512_cvtepi8_epi32(load_16(cell + f.scales_at() + s * kStripeRows));
  if constexpr (f.scale_kind == ScaleKind::integer_pairs) {
    words = _mm512_and_si512(words, _mm512_set1_epi32(15));
  }
  return _mm512_cvtepi32_ps(words);
}

template <class Tag>
inline __m512 integer_offsets(const uint8_t* cell, int s) {
  constexpr const Format& f = Tag::format;
  constexpr bool pairs = f.scale_kind == ScaleKind::integer_pairs;
  const uint8_t* at = cell + (pairs ? f.scales_at() : f.offsets_at()) + s * kStripeRows;
  __m512i words = _mm512_cvtepu8_epi32(load_16(at));
  if constexpr (pairs) words = _mm512_srli_epi32(words, 4);
  return _mm512_cvtepi32_ps(words);
}

}  // namespace trimaran::avx512

TRIMARAN_TARGET_END
