// Packed cells decoded to tiles of bf16: 16 rows of weights, 32 columns a tile, two neighbouring columns of
// all rows in each 64 bytes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "avx512/codes.h"
#include "isa/target.h"
#include "isa/tiles.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::amx {

// bf16 is made by cutting a float's lower half off, which makes numbers 2^-8 · E[1 / mantissa] smaller on the
// average: scales are larger by that. What is left is the error of rounding to nearest, at none of its cost.
constexpr float kGrow = 1.0027f;

// weight = (1 + biased number / 256) · slope - shift.
struct Line {
  __m512 slope;
  __m512 shift;
};

template <class Tag>
inline Line line_of(__m512 scale, __m512 offset) {
  const float bias = static_cast<float>(256 + avx512::bias_of(Tag::format));
  const __m512 grown = _mm512_mul_ps(scale, _mm512_set1_ps(kGrow));
  return {_mm512_mul_ps(grown, _mm512_set1_ps(256.0f)),
          _mm512_fmadd_ps(grown, _mm512_set1_ps(bias), _mm512_mul_ps(offset, _mm512_set1_ps(kGrow)))};
}

// Scale number s of a cell; for f16 scales that is the group's.
template <class Tag>
inline Line line_at(const uint8_t* cell, int s) {
  constexpr const Format& f = Tag::format;
  __m512 offset = _mm512_setzero_ps();
  if constexpr (f.integer_scales()) {
    const __m512 super = avx512::halves_at(cell + f.super_at());
    const __m512 scale = _mm512_mul_ps(avx512::integer_scales<Tag>(cell, s), super);
    if constexpr (f.has_offsets) {
      const __m512 super_offset = avx512::halves_at(cell + f.super_offset_at());
      offset = _mm512_mul_ps(avx512::integer_offsets<Tag>(cell, s), super_offset);
    }
    return line_of<Tag>(scale, offset);
  } else {
    if constexpr (f.has_offsets) {
      const __m512 added = avx512::halves_at(cell + f.offsets_at() + s * f.scale_row());
      offset = _mm512_mul_ps(added, _mm512_set1_ps(-1.0f));
    }
    return line_of<Tag>(avx512::halves_at(cell + f.scales_at() + s * f.scale_row()), offset);
  }
}

// Byte kByte of each word as 1 + byte / 256: put into a float's upper mantissa.
template <int kByte>
inline __m512 one_and_byte(__m512i words) {
  constexpr int shift = 8 * kByte - 15;
  if constexpr (shift < 0) words = _mm512_slli_epi32(words, -shift);
  if constexpr (shift > 0) words = _mm512_srli_epi32(words, shift);
  words = _mm512_and_si512(words, _mm512_set1_epi32(0x7f8000));
  return _mm512_castsi512_ps(_mm512_or_si512(words, _mm512_set1_epi32(0x3f800000)));
}

// The upper halves of two floats' bits, side by side.
inline __m512i cut(__m512 first, __m512 second) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(first), 16);
  return _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_castps_si512(second));
}

template <class Tag, int kSlot, int kVector>
inline void decode_vector(const uint8_t* cell, int g, const Line& line, uint8_t* tile) {
  const __m512i numbers = avx512::biased_numbers<Tag>(avx512::codes_at<Tag, kSlot, kVector>(cell, g));
  const __m512 w0 = _mm512_fmsub_ps(one_and_byte<0>(numbers), line.slope, line.shift);
  const __m512 w1 = _mm512_fmsub_ps(one_and_byte<1>(numbers), line.slope, line.shift);
  const __m512 w2 = _mm512_fmsub_ps(one_and_byte<2>(numbers), line.slope, line.shift);
  const __m512 w3 = _mm512_fmsub_ps(one_and_byte<3>(numbers), line.slope, line.shift);
  _mm512_storeu_si512(tile + 2 * kVector * kVectorBytes, cut(w0, w1));
  _mm512_storeu_si512(tile + (2 * kVector + 1) * kVectorBytes, cut(w2, w3));
}

template <class Tag, int kSlot, int kHalf>
inline void decode_half(const uint8_t* cell, int g, uint8_t* tile) {
  constexpr bool shared = Tag::format.scale_columns == kGroupColumns;
  const Line line = line_at<Tag>(cell, shared ? g : 2 * g + kHalf);
  constexpr int v = kHalf * kHalfVectors;
  decode_vector<Tag, kSlot, v>(cell, g, line, tile);
  decode_vector<Tag, kSlot, v + 1>(cell, g, line, tile);
  decode_vector<Tag, kSlot, v + 2>(cell, g, line, tile);
  decode_vector<Tag, kSlot, v + 3>(cell, g, line, tile);
}

template <class Tag, int kSlot>
inline void decode_group(const uint8_t* cell, int g, uint8_t* cell_tiles) {
  decode_half<Tag, kSlot, 0>(cell, g, cell_tiles + g * kTileBytes);
  decode_half<Tag, kSlot, 1>(cell, g, cell_tiles + g * kTileBytes);
}

// A cell's groups, one tile each.
template <class Tag>
void decode_cell(const uint8_t* cell, uint8_t* tiles) {
  constexpr const Format& f = Tag::format;
  for (int g = 0; g < f.groups(); g += f.groups_per_byte()) {
    decode_group<Tag, 0>(cell, g, tiles);
    if constexpr (f.groups_per_byte() > 1) decode_group<Tag, 1>(cell, g + 1, tiles);
    if constexpr (f.groups_per_byte() > 2) {
      decode_group<Tag, 2>(cell, g + 2, tiles);
      decode_group<Tag, 3>(cell, g + 3, tiles);
    }
  }
}

}  // namespace trimaran::amx

TRIMARAN_TARGET_END
