#include "avx512/attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <initializer_list>

#include "avx512/lanes.h"
#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx2,fma,f16c")

namespace trimaran::avx512 {
namespace {

// As avx2's exp_8, to the bit: e^x for x ≤ 0, within 2 units in the last place; below -87 it is 0, NaN stays
// NaN. The power of two is multiplied by one instruction, which is exact: e^-87 is a normal number.
inline __m512 exp_16(__m512 x) {
  const __m512 lowest = _mm512_set1_ps(-87.0f);
  const __mmask16 stays = _mm512_cmp_ps_mask(x, lowest, _CMP_NLT_UQ);
  x = _mm512_max_ps(lowest, x);  // the second operand if either is NaN
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.0f / 5040);
  for (const float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(coefficient));
  }
  return _mm512_maskz_scalef_ps(stays, y, n);
}

// 16 or 8 rows of the tile, side by side.
template <bool kWhole>
bool softmax_rows(const ScoreTile& tile, int row) {
  float* scores = tile.scores + row;
  const __m512 scale = _mm512_set1_ps(tile.scale);
  const __mmask16 rows = kWhole ? __mmask16{0xffff} : kHalfMask;
  const __m512i visible = _mm512_maskz_loadu_epi32(rows, tile.visible + row);
  const __m512 before = load<kWhole>(tile.peak + row);
  const __m512 hidden = _mm512_set1_ps(-__builtin_inff());
  __m512 peak = before;
  for (int t = 0; t < tile.tokens; ++t) {
    const __mmask16 seen = _mm512_cmpgt_epi32_mask(visible, _mm512_set1_epi32(t));
    const __m512 score = _mm512_mask_mul_ps(hidden, seen, load<kWhole>(scores + t * kPanel), scale);
    store<kWhole>(scores + t * kPanel, score);
    peak = _mm512_max_ps(score, peak);
  }
  __m512 sum = _mm512_setzero_ps();
  for (int t = 0; t < tile.tokens; ++t) {
    const __m512 weight = exp_16(_mm512_sub_ps(load<kWhole>(scores + t * kPanel), peak));
    store<kWhole>(scores + t * kPanel, weight);
    sum = _mm512_add_ps(sum, weight);
  }
  const __m512 shrink = exp_16(_mm512_sub_ps(before, peak));
  store<kWhole>(tile.shrink + row, shrink);
  store<kWhole>(tile.peak + row, peak);
  store<kWhole>(tile.sum + row, _mm512_fmadd_ps(load<kWhole>(tile.sum + row), shrink, sum));
  return _mm512_mask_cmp_ps_mask(rows, shrink, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ) != 0;
}

}  // namespace

bool softmax(const ScoreTile& tile) {
  bool shrinks = false;
  int row = 0;
  for (; row + kWide <= tile.rows; row += kWide) shrinks |= softmax_rows<true>(tile, row);
  if (row < tile.rows) shrinks |= softmax_rows<false>(tile, row);
  return shrinks;
}

}  // namespace trimaran::avx512

TRIMARAN_TARGET_END

#endif
