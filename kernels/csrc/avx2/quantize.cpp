#include "avx2/packed.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <limits>

#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

float largest_of(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  m = _mm_max_ss(m, _mm_movehdup_ps(m));
  return _mm_cvtss_f32(m);
}

// max |x| of 16 numbers, or NaN if one is not finite.
float largest_magnitude(__m256 low, __m256 high) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  const __m256 most = _mm256_set1_ps(std::numeric_limits<float>::max());
  low = _mm256_andnot_ps(sign, low);
  high = _mm256_andnot_ps(sign, high);
  const __m256 finite =
      _mm256_and_ps(_mm256_cmp_ps(low, most, _CMP_LE_OQ), _mm256_cmp_ps(high, most, _CMP_LE_OQ));
  return _mm256_movemask_ps(finite) == 0xff ? largest_of(_mm256_max_ps(low, high))
                                            : std::numeric_limits<float>::quiet_NaN();
}

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

__m256 squared_errors(__m256 low, __m256 high, __m256 inverse) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  low = _mm256_mul_ps(low, inverse);
  high = _mm256_mul_ps(high, inverse);
  low = _mm256_sub_ps(low, _mm256_round_ps(low, kNearest));
  high = _mm256_sub_ps(high, _mm256_round_ps(high, kNearest));
  return _mm256_add_ps(_mm256_mul_ps(low, low), _mm256_mul_ps(high, high));
}

__m128 sum_of_each(const __m256* lanes) {
  const __m256 quarters =
      _mm256_hadd_ps(_mm256_hadd_ps(lanes[0], lanes[1]), _mm256_hadd_ps(lanes[2], lanes[3]));
  return _mm_add_ps(_mm256_castps256_ps128(quarters), _mm256_extractf128_ps(quarters, 1));
}

// How many levels to spread [0, largest] over, the most of equals.
float best_levels(__m256 low, __m256 high, float largest) {
  __m256 errors[kTries];
  for (int i = 0; i < kTries; ++i) {
    const auto levels = static_cast<float>(kMostLevels - i);
    errors[i] = squared_errors(low, high, _mm256_set1_ps(levels / largest));
  }
  alignas(16) float sums[kTries];
  static_assert(kTries == 8);
  _mm_store_ps(sums, sum_of_each(errors));
  _mm_store_ps(sums + 4, sum_of_each(errors + 4));
  float best = kMostLevels;
  float least = std::numeric_limits<float>::infinity();
  for (int i = 0; i < kTries; ++i) {
    const auto levels = static_cast<float>(kMostLevels - i);
    const float error = sums[i] * (1.0f / (levels * levels));
    if (error < least) {
      least = error;
      best = levels;
    }
  }
  return best;
}

void quantize_half(const float* src, int64_t h, const QuantizedSlot& slot) {
  const __m256 low = _mm256_loadu_ps(src);
  const __m256 high = _mm256_loadu_ps(src + 8);
  const float largest = largest_magnitude(low, high);
  const bool usable = largest > kTiny;
  const float levels = usable ? best_levels(low, high, largest) : 1.0f;
  const float scale = usable ? largest / levels : largest * 0.0f;  // keeps a NaN
  __m128i codes = _mm_setzero_si128();
  if (usable) {
    const __m256 inverse = _mm256_set1_ps(levels / largest);
    codes = narrow(_mm256_cvtps_epi32(_mm256_mul_ps(low, inverse)),
                   _mm256_cvtps_epi32(_mm256_mul_ps(high, inverse)));
  }
  _mm_storeu_si128(reinterpret_cast<__m128i*>(slot.codes + h * kHalfColumns), codes);
  slot.scales[h] = scale;
  store_sums(codes, scale, h, slot);
}

}  // namespace

void quantize(const float* x, int64_t columns, int64_t first_group, const QuantizedSlot& slot) {
  for (int64_t i = 0; i < columns / kGroupColumns; ++i) {
    const int64_t g = first_group + i;
    quantize_half(x + i * kGroupColumns, 2 * g, slot);
    quantize_half(x + i * kGroupColumns + kHalfColumns, 2 * g + 1, slot);
    slot.sums[g] = slot.halves[2 * g] + slot.halves[2 * g + 1];
  }
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
