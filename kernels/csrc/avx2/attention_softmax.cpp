#include "avx2/attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <initializer_list>

#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

// e^x for x ≤ 0, within 2 units in the last place; below -87 it is 0, NaN stays NaN. x = n·ln 2 + r with
// |r| ≤ ln 2 / 2; ln 2 is subtracted in two parts, e^r is its Taylor polynomial of degree 7.
inline __m256 exp_8(__m256 x) {
  const __m256 lowest = _mm256_set1_ps(-87.0f);
  const __m256 vanishes = _mm256_cmp_ps(x, lowest, _CMP_LT_OQ);
  x = _mm256_max_ps(lowest, x);  // the second operand if either is NaN
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 y = _mm256_set1_ps(1.0f / 5040);
  for (const float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(coefficient));
  }
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  const __m256 power = _mm256_mul_ps(y, _mm256_castsi256_ps(exponent));
  // A NaN's exponent is nonsense, but y is NaN then.
  return _mm256_andnot_ps(vanishes, power);
}

// Eight rows of the tile, side by side.
bool softmax_8(const ScoreTile& tile, int row) {
  float* scores = tile.scores + row;
  const __m256 scale = _mm256_set1_ps(tile.scale);
  const __m256i visible = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile.visible + row));
  const __m256 before = _mm256_loadu_ps(tile.peak + row);
  const __m256 hidden = _mm256_set1_ps(-__builtin_inff());
  __m256 peak = before;
  for (int t = 0; t < tile.tokens; ++t) {
    const __m256 seen = _mm256_castsi256_ps(_mm256_cmpgt_epi32(visible, _mm256_set1_epi32(t)));
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(scores + t * kPanel), scale);
    const __m256 score = _mm256_blendv_ps(hidden, scaled, seen);
    _mm256_storeu_ps(scores + t * kPanel, score);
    peak = _mm256_max_ps(score, peak);
  }
  __m256 sum = _mm256_setzero_ps();
  for (int t = 0; t < tile.tokens; ++t) {
    const __m256 weight = exp_8(_mm256_sub_ps(_mm256_loadu_ps(scores + t * kPanel), peak));
    _mm256_storeu_ps(scores + t * kPanel, weight);
    sum = _mm256_add_ps(sum, weight);
  }
  const __m256 shrink = exp_8(_mm256_sub_ps(before, peak));
  _mm256_storeu_ps(tile.shrink + row, shrink);
  _mm256_storeu_ps(tile.peak + row, peak);
  _mm256_storeu_ps(tile.sum + row, _mm256_fmadd_ps(_mm256_loadu_ps(tile.sum + row), shrink, sum));
  return _mm256_movemask_ps(_mm256_cmp_ps(shrink, _mm256_set1_ps(1.0f), _CMP_NEQ_UQ)) != 0;
}

}  // namespace

bool softmax(const ScoreTile& tile) {
  bool shrinks = false;
  for (int row = 0; row < tile.rows; row += 8) shrinks |= softmax_8(tile, row);
  return shrinks;
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
