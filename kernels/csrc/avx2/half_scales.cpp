#include "avx2/half_scales.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <limits>

#include "avx2/transpose.h"
#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

// A lane is a half, so that no sum, maximum or choice goes across lanes: half by half, their latencies follow
// each other and take three times as long.
struct Columns {
  alignas(32) float at[kHalfColumns][kHalvesAtOnce];

  explicit Columns(const float* x) {
    transpose_8x8(x, kHalfColumns, at[0], kHalvesAtOnce);
    transpose_8x8(x + 8, kHalfColumns, at[8], kHalvesAtOnce);
  }
  __m256 operator[](int column) const { return _mm256_load_ps(at[column]); }
};

// max |x|, or NaN if one is not finite.
__m256 largest_magnitude(const Columns& x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  const __m256 most = _mm256_set1_ps(std::numeric_limits<float>::max());
  __m256 largest = _mm256_setzero_ps();
  __m256 finite = _mm256_cmp_ps(largest, largest, _CMP_EQ_OQ);
  for (int i = 0; i < kHalfColumns; ++i) {
    const __m256 magnitude = _mm256_andnot_ps(sign, x[i]);
    finite = _mm256_and_ps(finite, _mm256_cmp_ps(magnitude, most, _CMP_LE_OQ));
    largest = _mm256_max_ps(largest, magnitude);
  }
  return _mm256_blendv_ps(_mm256_set1_ps(std::numeric_limits<float>::quiet_NaN()), largest, finite);
}

__m256 rounding_error(__m256 x, __m256 inverse) {
  const __m256 scaled = _mm256_mul_ps(x, inverse);
  return _mm256_sub_ps(scaled, _mm256_round_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// In units of the scale; the sum's order is the reference's.
__m256 squared_error(const Columns& x, __m256 inverse) {
  __m256 errors[8];
  for (int i = 0; i < 8; ++i) {
    const __m256 low = rounding_error(x[i], inverse);
    const __m256 high = rounding_error(x[i + 8], inverse);
    errors[i] = _mm256_add_ps(_mm256_mul_ps(low, low), _mm256_mul_ps(high, high));
  }
  for (int step = 1; step < 8; step *= 2) {
    for (int i = 0; i < 8; i += 2 * step) errors[i] = _mm256_add_ps(errors[i], errors[i + step]);
  }
  return errors[0];
}

// How many levels to spread [0, largest] over, the most of equals.
__m256 best_levels(const Columns& x, __m256 largest) {
  __m256 best = _mm256_set1_ps(kMostLevels);
  __m256 least = _mm256_set1_ps(std::numeric_limits<float>::infinity());
  for (int i = 0; i < kTries; ++i) {
    const auto n = static_cast<float>(kMostLevels - i);
    const __m256 levels = _mm256_set1_ps(n);
    const __m256 error =
        _mm256_mul_ps(squared_error(x, _mm256_div_ps(levels, largest)), _mm256_set1_ps(1.0f / (n * n)));
    const __m256 better = _mm256_cmp_ps(error, least, _CMP_LT_OQ);
    least = _mm256_blendv_ps(least, error, better);
    best = _mm256_blendv_ps(best, levels, better);
  }
  return best;
}

}  // namespace

HalfScales find_scales(const float* x) {
  const Columns columns(x);
  const __m256 largest = largest_magnitude(columns);
  const __m256 usable = _mm256_cmp_ps(largest, _mm256_set1_ps(kTiny), _CMP_GT_OQ);
  const __m256 levels = best_levels(columns, largest);
  const __m256 unused = _mm256_mul_ps(largest, _mm256_setzero_ps());  // keeps a NaN
  HalfScales found;
  _mm256_store_ps(found.scales, _mm256_blendv_ps(unused, _mm256_div_ps(largest, levels), usable));
  _mm256_store_ps(found.inverses, _mm256_and_ps(_mm256_div_ps(levels, largest), usable));
  return found;
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
