// Packed cells decoded to tiles of bf16: 16 rows of weights, 32 columns a tile. A line of 64 bytes has two
// columns of all rows: columns 4 i and 4 i + 2, or 4 i + 1 and 4 i + 3.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "amx/scheme.h"
#include "avx512/codes.h"
#include "isa/target.h"
#include "isa/tiles.h"
#include "packed/ahead.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::amx {

// One stripe's weights of a step. kPlanes tiles a group, whose sum is the weights'.
template <int kPlanes>
struct alignas(64) StripePanel {
  uint8_t tiles[kStepGroups * kPlanes][kTileBytes];
  float scales[kStepGroups][kStripeRows];  // of each product, or the first of all
};

// Numbers cut off to bf16 are smaller by 2^-8 · E[1 / mantissa] on the average: scales are larger by that.
// What is left is the error of rounding to nearest, at none of its cost.
constexpr float kGrow = 1.0027f;

// (A and B) or C; A chooses between B and C.
constexpr int kAndOr = 0xea;
constexpr int kChoose = 0xca;

template <int kFrom, int kTo>
inline __m512i moved(__m512i words) {
  if constexpr (kFrom > kTo) return _mm512_srli_epi16(words, kFrom - kTo);
  if constexpr (kFrom < kTo) return _mm512_slli_epi16(words, kTo - kFrom);
  return words;
}

// Byte kByte of each word of `low`, and the bit of the plane above it, as 1 + code / unit.
template <class Tag, int kSlot, int kVector, int kByte>
inline __m512i mantissas(__m512i low, __m512i plane) {
  constexpr const Format& f = Tag::format;
  constexpr int kMantissaBits = 7;
  constexpr int lowest = kMantissaBits - code_bits(f);
  constexpr int mask = ((1 << code_bits(f)) - 1) << lowest;
  __m512i words = moved<kSlot * f.low_bits + 8 * kByte, lowest>(low);
  if constexpr (f.high_bits > 0) {
    constexpr int top = kMantissaBits - 1;
    const __m512i high = moved<kVector + 8 * kByte, top>(plane);
    words = _mm512_ternarylogic_epi32(_mm512_set1_epi16(1 << top), high, words, kChoose);
  }
  return _mm512_ternarylogic_epi32(words, _mm512_set1_epi16(mask), _mm512_set1_epi16(0x3f80), kAndOr);
}

// A whole number below 256 as bf16.
constexpr uint16_t bf16_of(int number) {
  int magnitude = number < 0 ? -number : number;
  if (magnitude == 0) return 0;
  int exponent = 127 + 7;
  for (; magnitude < 128; magnitude *= 2) --exponent;
  return static_cast<uint16_t>((number < 0 ? 0x8000 : 0) | exponent << 7 | (magnitude & 0x7f));
}

// Twice, as vpermw reads five bits of an index.
struct alignas(64) LevelTable {
  uint16_t words[32];
  constexpr LevelTable() : words() {
    for (int i = 0; i < 32; ++i) words[i] = bf16_of(kIq4Levels[i % 16]);
  }
};

template <class Tag, int kSlot, int kVector>
inline void decode_codes(const uint8_t* cell, int g, uint8_t* lines) {
  constexpr const Format& f = Tag::format;
  const __m512i low = avx512::load_64(cell + f.low_run(g) + kVector * kVectorBytes);
  if constexpr (f.kind == CodeKind::levels) {
    static constexpr LevelTable kTable;
    const __m512i table = avx512::load_64(kTable.words);
    const __m512i even = moved<kSlot * 4, 0>(low);
    const __m512i odd = moved<kSlot * 4 + 8, 0>(low);
    _mm512_storeu_si512(lines, _mm512_permutexvar_epi16(even, table));
    _mm512_storeu_si512(lines + kLineBytes, _mm512_permutexvar_epi16(odd, table));
  } else {
    __m512i plane = _mm512_setzero_si512();
    if constexpr (f.high_bits > 0) plane = avx512::load_64(cell + f.high_at() + g * kVectorBytes);
    _mm512_storeu_si512(lines, mantissas<Tag, kSlot, kVector, 0>(low, plane));
    _mm512_storeu_si512(lines + kLineBytes, mantissas<Tag, kSlot, kVector, 1>(low, plane));
  }
}

// number · scale = (1 + biased number / 256) · slope - shift.
struct Line {
  __m512 slope;
  __m512 shift;
};

template <class Tag>
inline Line line_of(__m512 scale) {
  const float bias = static_cast<float>(256 + avx512::bias_of(Tag::format));
  return {_mm512_mul_ps(scale, _mm512_set1_ps(256.0f)), _mm512_mul_ps(scale, _mm512_set1_ps(bias))};
}

// Byte kByte of each double word as 1 + byte / 256: put into a float's upper mantissa.
template <int kByte>
inline __m512 one_and_byte(__m512i words) {
  constexpr int shift = 8 * kByte - 15;
  if constexpr (shift < 0) words = _mm512_slli_epi32(words, -shift);
  if constexpr (shift > 0) words = _mm512_srli_epi32(words, shift);
  const __m512i mask = _mm512_set1_epi32(0x7f8000), one = _mm512_set1_epi32(0x3f800000);
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(words, mask, one, kAndOr));
}

// The upper halves of two floats' bits, side by side.
inline __m512i cut(__m512 first, __m512 second) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(first), 16);
  return _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_castps_si512(second));
}

// What cutting leaves.
inline __m512 rest(__m512 number) {
  const __m512i upper = _mm512_and_si512(_mm512_castps_si512(number), _mm512_set1_epi32(-0x10000));
  return _mm512_sub_ps(number, _mm512_castsi512_ps(upper));
}

template <class Tag, int kSlot, int kVector, int kPlanes>
inline void decode_products(const uint8_t* cell, int g, const Line& line, uint8_t* lines) {
  const __m512i numbers = avx512::biased_numbers<Tag>(avx512::codes_at<Tag, kSlot, kVector>(cell, g));
  const __m512 w0 = _mm512_fmsub_ps(one_and_byte<0>(numbers), line.slope, line.shift);
  const __m512 w1 = _mm512_fmsub_ps(one_and_byte<1>(numbers), line.slope, line.shift);
  const __m512 w2 = _mm512_fmsub_ps(one_and_byte<2>(numbers), line.slope, line.shift);
  const __m512 w3 = _mm512_fmsub_ps(one_and_byte<3>(numbers), line.slope, line.shift);
  _mm512_storeu_si512(lines, cut(w0, w2));
  _mm512_storeu_si512(lines + kLineBytes, cut(w1, w3));
  if constexpr (kPlanes > 1) {
    _mm512_storeu_si512(lines + kTileBytes, cut(rest(w0), rest(w2)));
    _mm512_storeu_si512(lines + kTileBytes + kLineBytes, cut(rest(w1), rest(w3)));
  }
}

template <class Tag, int kSlot, int kHalf, int kPlanes>
inline void decode_half(const uint8_t* cell, int g, uint8_t* tile) {
  constexpr const Format& f = Tag::format;
  constexpr int v = kHalf * kHalfVectors;
  constexpr int pitch = 2 * kLineBytes;
  uint8_t* lines = tile + v * pitch;
  if constexpr (defers_scales(f) && f.kind != CodeKind::bytes) {
    decode_codes<Tag, kSlot, v>(cell, g, lines);
    decode_codes<Tag, kSlot, v + 1>(cell, g, lines + pitch);
    decode_codes<Tag, kSlot, v + 2>(cell, g, lines + 2 * pitch);
    decode_codes<Tag, kSlot, v + 3>(cell, g, lines + 3 * pitch);
  } else {
    __m512 scale = _mm512_set1_ps(1.0f);
    if constexpr (!defers_scales(f)) scale = avx512::integer_scales<Tag>(cell, 2 * g + kHalf);
    const Line line = line_of<Tag>(scale);
    decode_products<Tag, kSlot, v, kPlanes>(cell, g, line, lines);
    decode_products<Tag, kSlot, v + 1, kPlanes>(cell, g, line, lines + pitch);
    decode_products<Tag, kSlot, v + 2, kPlanes>(cell, g, line, lines + 2 * pitch);
    decode_products<Tag, kSlot, v + 3, kPlanes>(cell, g, line, lines + 3 * pitch);
  }
}

template <class Tag, int kSlot, int kPlanes>
inline void decode_group(const uint8_t* cell, int g, uint8_t (*tiles)[kTileBytes]) {
  decode_half<Tag, kSlot, 0, kPlanes>(cell, g, tiles[g * kPlanes]);
  decode_half<Tag, kSlot, 1, kPlanes>(cell, g, tiles[g * kPlanes]);
}

// Scale number s of a cell: weight = scale · number - offset.
template <class Tag>
inline __m512 scale_at(const uint8_t* cell, int s) {
  constexpr const Format& f = Tag::format;
  if constexpr (!f.integer_scales()) return avx512::halves_at(cell + f.scales_at() + s * f.scale_row());
  return _mm512_mul_ps(avx512::integer_scales<Tag>(cell, s), avx512::halves_at(cell + f.super_at()));
}

template <class Tag>
inline __m512 offset_at(const uint8_t* cell, int s) {
  constexpr const Format& f = Tag::format;
  if constexpr (!f.has_offsets) return _mm512_setzero_ps();
  if constexpr (f.integer_scales()) {
    const __m512 super = avx512::halves_at(cell + f.super_offset_at());
    return _mm512_mul_ps(avx512::integer_offsets<Tag>(cell, s), super);
  }
  const __m512 added = avx512::halves_at(cell + f.offsets_at() + s * f.scale_row());
  return _mm512_mul_ps(added, _mm512_set1_ps(-1.0f));
}

// A cell's groups: tiles and scales from group `first` of the panel on. The cell `ahead` is prefetched.
template <class Tag, int kPlanes>
inline void decode_cell(const uint8_t* cell, const uint8_t* ahead, int first, StripePanel<kPlanes>& panel) {
  constexpr const Format& f = Tag::format;
  auto* tiles = panel.tiles + first * kPlanes;
  for (int g = 0; g < f.groups(); g += f.groups_per_byte()) {
    prefetch_part<Tag>(ahead, g);
    decode_group<Tag, 0, kPlanes>(cell, g, tiles);
    if constexpr (f.groups_per_byte() > 1) decode_group<Tag, 1, kPlanes>(cell, g + 1, tiles);
    if constexpr (f.groups_per_byte() > 2) {
      decode_group<Tag, 2, kPlanes>(cell, g + 2, tiles);
      decode_group<Tag, 3, kPlanes>(cell, g + 3, tiles);
    }
  }
  if constexpr (defers_scales(f)) {
    const __m512 units = _mm512_set1_ps(static_cast<float>(unit(f)));
    for (int g = 0; g < f.groups(); ++g) {
      _mm512_storeu_ps(panel.scales[first + g], _mm512_mul_ps(scale_at<Tag>(cell, g), units));
    }
  } else {
    const float growth = kPlanes > 1 || is_exact(f) ? 1.0f : kGrow;
    const __m512 super = avx512::halves_at(cell + f.super_at());
    _mm512_storeu_ps(panel.scales[0], _mm512_mul_ps(super, _mm512_set1_ps(growth)));
  }
}

// Two lines: a coefficient's upper bf16, cut off, and its lower, rounded; each twice, for a sum's upper and
// lower.
inline void store_coefficient(uint8_t* lines, __m512 coefficient) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512 lower = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(rest(coefficient)), half));
  _mm512_storeu_si512(lines, cut(coefficient, coefficient));
  _mm512_storeu_si512(lines + kLineBytes, cut(lower, lower));
}

// A cell's coefficients from number `first` of the step's on: what is to be added for each sum of
// activations.
template <class Tag>
inline void decode_coefficients(const uint8_t* cell, int first, uint8_t* tiles) {
  constexpr const Format& f = Tag::format;
  for (int s = 0; s < f.scales(); ++s) {
    __m512 coefficient = _mm512_mul_ps(offset_at<Tag>(cell, s), _mm512_set1_ps(-1.0f));
    if constexpr (is_biased(f)) {
      const float bias = static_cast<float>(unit(f) + f.center);
      coefficient = _mm512_fnmadd_ps(scale_at<Tag>(cell, s), _mm512_set1_ps(bias), coefficient);
    }
    store_coefficient(tiles + (first + s) * 2 * kLineBytes, coefficient);
  }
}

}  // namespace trimaran::amx

TRIMARAN_TARGET_END
