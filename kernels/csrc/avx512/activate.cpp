#include "avx512/activate.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "generic/activate.h"
#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::avx512 {
namespace {

constexpr int kWidth = sizeof(__m512) / sizeof(float);

// As trimaran::bounded_exp; the second operand of a comparison is the result if either is NaN.
inline __m512 bounded_exp(__m512 x) {
  using namespace exponential;
  x = _mm512_max_ps(x, _mm512_set1_ps(kLeastPower));
  x = _mm512_min_ps(x, _mm512_set1_ps(kMostPower));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(kPerLn2)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kUpperLn2), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLowerLn2), r);
  __m512 y = _mm512_set1_ps(kTaylor[0]);
  for (int i = 1; i < kTerms; ++i) y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(kTaylor[i]));
  const auto exponent =
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_mul_ps(y, _mm512_castsi512_ps(exponent));
}

}  // namespace

void activate(const float* gate, const float* up, int64_t n, float* out) {
  const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const __m512 x = _mm512_loadu_ps(gate + i);
    const __m512 silu = _mm512_div_ps(x, _mm512_add_ps(one, bounded_exp(_mm512_sub_ps(zero, x))));
    _mm512_storeu_ps(out + i, _mm512_mul_ps(silu, _mm512_loadu_ps(up + i)));
  }
  generic::activate(gate + i, up + i, n - i, out + i);
}

}  // namespace trimaran::avx512

TRIMARAN_TARGET_END

#endif
