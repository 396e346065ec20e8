#include "avx2/packed.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "avx2/half_scales.h"
#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

// Two vectors of 8 words to 16 bytes in order.
__m128i narrow(__m256i low, __m256i high) {
  const __m256i shorts = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
  return _mm_packs_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
}

void store_sums(__m128i codes, float scale, int64_t h, const QuantizedSlot& slot) {
  __m128i pairs = _mm_maddubs_epi16(_mm_set1_epi8(1), codes);  // even ones: columns 0, 1 of four
  pairs = _mm_add_epi16(pairs, _mm_srli_si128(pairs, 8));
  pairs = _mm_add_epi16(pairs, _mm_srli_si128(pairs, 4));
  const auto first = static_cast<int16_t>(_mm_extract_epi16(pairs, 0));
  const auto second = static_cast<int16_t>(_mm_extract_epi16(pairs, 1));
  slot.lanes[2 * h] = static_cast<int16_t>(-first);
  slot.lanes[2 * h + 1] = static_cast<int16_t>(-second);
  slot.halves[h] = scale * static_cast<float>(first + second);
}

void write_half(const float* src, float scale, float inverse, int64_t h, const QuantizedSlot& slot) {
  __m128i codes = _mm_setzero_si128();
  if (inverse > 0.0f) {
    const __m256 factor = _mm256_set1_ps(inverse);
    codes = narrow(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(src), factor)),
                   _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(src + 8), factor)));
  }
  _mm_storeu_si128(reinterpret_cast<__m128i*>(slot.codes + h * kHalfColumns), codes);
  slot.scales[h] = scale;
  store_sums(codes, scale, h, slot);
}

// So many halves from the h-th on, kHalvesAtOnce at most.
void write_halves(const float* x, int64_t count, int64_t h, const QuantizedSlot& slot) {
  alignas(32) float padded[kHalvesAtOnce * kHalfColumns] = {};
  const bool whole = count == kHalvesAtOnce;
  if (!whole) std::copy_n(x, count * kHalfColumns, padded);
  const HalfScales found = find_scales(whole ? x : padded);
  for (int64_t i = 0; i < count; ++i) {
    write_half(x + i * kHalfColumns, found.scales[i], found.inverses[i], h + i, slot);
  }
}

}  // namespace

void quantize(const float* x, int64_t columns, int64_t first_group, const QuantizedSlot& slot) {
  const int64_t groups = columns / kGroupColumns, halves = 2 * groups;
  for (int64_t i = 0; i < halves; i += kHalvesAtOnce) {
    const int64_t count = std::min<int64_t>(kHalvesAtOnce, halves - i);
    write_halves(x + i * kHalfColumns, count, 2 * first_group + i, slot);
  }
  for (int64_t g = first_group; g < first_group + groups; ++g) {
    slot.sums[g] = slot.halves[2 * g] + slot.halves[2 * g + 1];
  }
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
