#include "avx2/activate.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "generic/activate.h"
#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

constexpr int kWidth = sizeof(__m256) / sizeof(float);

// As trimaran::bounded_exp; the second operand of a comparison is the result if either is NaN.
inline __m256 bounded_exp(__m256 x) {
  using namespace exponential;
  x = _mm256_max_ps(x, _mm256_set1_ps(kLeastPower));
  x = _mm256_min_ps(x, _mm256_set1_ps(kMostPower));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(kPerLn2)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kUpperLn2), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLowerLn2), r);
  __m256 y = _mm256_set1_ps(kTaylor[0]);
  for (int i = 1; i < kTerms; ++i) y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(kTaylor[i]));
  const auto exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(y, _mm256_castsi256_ps(exponent));
}

}  // namespace

void activate(const float* gate, const float* up, int64_t n, float* out) {
  const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1.0f);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const __m256 x = _mm256_loadu_ps(gate + i);
    const __m256 silu = _mm256_div_ps(x, _mm256_add_ps(one, bounded_exp(_mm256_sub_ps(zero, x))));
    _mm256_storeu_ps(out + i, _mm256_mul_ps(silu, _mm256_loadu_ps(up + i)));
  }
  generic::activate(gate + i, up + i, n - i, out + i);
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
