#include "avx2/panel.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

// kRows × kTokens dot products side by side, one vector of partial sums each. Twelve sums hide the latency of
// FMA (4 cycles, two a cycle) and leave registers for the operands.
template <int kRows, int kTokens>
void tile(const Panel& panel, int row, int token, float* acc) {
  const float* w = panel.w + row * panel.ldw;
  const auto lanes = [&](int r, int t) {
    return acc + (static_cast<int64_t>(row + r) * panel.tokens + token + t) * kLanes;
  };
  __m256 sums[kRows][kTokens];
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) sums[r][t] = _mm256_loadu_ps(lanes(r, t));
  }
  for (int64_t c = 0; c < panel.k; c += kLanes) {
    __m256 x[kTokens];
    for (int t = 0; t < kTokens; ++t) x[t] = _mm256_loadu_ps(panel.x[token + t] + c);
    for (int r = 0; r < kRows; ++r) {
      const __m256 weights = _mm256_loadu_ps(w + r * panel.ldw + c);
      for (int t = 0; t < kTokens; ++t) sums[r][t] = _mm256_fmadd_ps(weights, x[t], sums[r][t]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) _mm256_storeu_ps(lanes(r, t), sums[r][t]);
  }
}

template <int kTokens>
void all_rows(const Panel& panel, int token, float* acc) {
  int row = 0;
  if constexpr (kTokens == 1) {
    for (; row + 8 <= panel.rows; row += 8) tile<8, kTokens>(panel, row, token, acc);
  }
  for (; row + 4 <= panel.rows; row += 4) tile<4, kTokens>(panel, row, token, acc);
  for (; row < panel.rows; ++row) tile<1, kTokens>(panel, row, token, acc);
}

}  // namespace

void accumulate(const Panel& panel, float* acc) {
  int token = 0;
  for (; token + 3 <= panel.tokens; token += 3) all_rows<3>(panel, token, acc);
  if (token + 2 == panel.tokens) all_rows<2>(panel, token, acc);
  if (token + 1 == panel.tokens) all_rows<1>(panel, token, acc);
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
