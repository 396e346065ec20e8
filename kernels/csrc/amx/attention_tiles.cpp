#include <algorithm>

#include "amx/attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "amx/registers.h"
#include "isa/target.h"

TRIMARAN_TARGET_BEGIN("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")

namespace trimaran::amx {
namespace {

static_assert(kTileDepth * sizeof(uint16_t) == kPitch);
constexpr int kWide = 16;

void configure() { _tile_loadconfig(&kConfig); }
void release() { _tile_release(); }

// The first n of 16 lanes.
inline __mmask16 first_lanes(int n) {
  return static_cast<__mmask16>(n >= kWide ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1);
}

// The lower vector's words come first.
inline __m512i rounded(__m512 lower, __m512 upper) { return (__m512i)_mm512_cvtne2ps_pbh(upper, lower); }

void pack_left(const float* src, int64_t lds, int rows, int depth, uint16_t* dst) {
  for (int row = 0; row < rows; row += kTileLines) {
    for (int k = 0; k < depth; k += kTileDepth) {
      const __mmask16 lower = first_lanes(depth - k), upper = first_lanes(depth - k - kWide);
      for (int r = row; r < row + kTileLines; ++r, dst += kTileDepth) {
        __m512i line = _mm512_setzero_si512();
        if (r < rows) {
          const float* from = src + r * lds + k;
          line = rounded(_mm512_maskz_loadu_ps(lower, from), _mm512_maskz_loadu_ps(upper, from + kWide));
        }
        _mm512_storeu_si512(dst, line);
      }
    }
  }
}

// Words c and c + 16 side by side.
constexpr uint16_t kInterleaved[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

void pack_right(const float* src, int64_t lds, int depth, int columns, uint16_t* dst) {
  const __m512i interleaved = _mm512_loadu_si512(kInterleaved);
  const int padded = static_cast<int>(tiles_of(depth, kTileDepth)) * kTileDepth;
  for (int column = 0; column < columns; column += kTileLines) {
    const __mmask16 lanes = first_lanes(columns - column);
    for (int k = 0; k < padded; k += 2, dst += kTileDepth) {
      const float* from = src + k * lds + column;
      const __m512 even = _mm512_maskz_loadu_ps(k < depth ? lanes : __mmask16{0}, from);
      const __m512 odd = _mm512_maskz_loadu_ps(k + 1 < depth ? lanes : __mmask16{0}, from + lds);
      _mm512_storeu_si512(dst, _mm512_permutexvar_epi16(interleaved, rounded(even, odd)));
    }
  }
}

// Tiles 0 and 1 are the sums of the first row of tiles, 2 and 3 of the second; 4 and 5 its left side, 6 and 7
// the right one. Two by two, each load serves two products.
template <int kRows, int kColumns>
inline void add_products(const TiledProduct& p, int row, int column) {
  const uint16_t* left = p.left + row * p.left_depth * kTileWords;
  const uint16_t* right = p.right + column * p.right_depth * kTileWords;
  const int64_t next_left = p.left_depth * kTileWords, next_right = p.right_depth * kTileWords;
  for (int k = 0; k < p.depth; ++k, left += kTileWords, right += kTileWords) {
    _tile_loadd(4, left, kPitch);
    _tile_loadd(6, right, kPitch);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumns > 1) {
      _tile_loadd(7, right + next_right, kPitch);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows > 1) {
      _tile_loadd(5, left + next_left, kPitch);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kRows > 1 && kColumns > 1) _tile_dpbf16ps(3, 5, 7);
  }
}

template <int kRows, int kColumns>
inline void product(const TiledProduct& p, int row, int column) {
  float* c = p.c + kTileLines * (row * p.ldc + column);
  float* below = c + kTileLines * p.ldc;
  const auto pitch = static_cast<long>(p.ldc * static_cast<int64_t>(sizeof(float)));
  if (p.accumulate) {
    _tile_loadd(0, c, pitch);
    if constexpr (kColumns > 1) _tile_loadd(1, c + kTileLines, pitch);
    if constexpr (kRows > 1) _tile_loadd(2, below, pitch);
    if constexpr (kRows > 1 && kColumns > 1) _tile_loadd(3, below + kTileLines, pitch);
  } else {
    _tile_zero(0);
    if constexpr (kColumns > 1) _tile_zero(1);
    if constexpr (kRows > 1) _tile_zero(2);
    if constexpr (kRows > 1 && kColumns > 1) _tile_zero(3);
  }
  add_products<kRows, kColumns>(p, row, column);
  _tile_stored(0, c, pitch);
  if constexpr (kColumns > 1) _tile_stored(1, c + kTileLines, pitch);
  if constexpr (kRows > 1) _tile_stored(2, below, pitch);
  if constexpr (kRows > 1 && kColumns > 1) _tile_stored(3, below + kTileLines, pitch);
}

template <int kRows>
inline void all_columns(const TiledProduct& p, int row) {
  int column = 0;
  for (; column + 2 <= p.columns; column += 2) product<kRows, 2>(p, row, column);
  if (column < p.columns) product<kRows, 1>(p, row, column);
}

void multiply(const TiledProduct& p) {
  __asm__ volatile("" ::: "memory");  // some compilers' tile loads do not say that they read it
  int row = 0;
  for (; row + 2 <= p.rows; row += 2) all_columns<2>(p, row);
  if (row < p.rows) all_columns<1>(p, row);
  __asm__ volatile("" ::: "memory");
}

void scale(float* c, int rows, const float* factors) {
  const __m512 left = _mm512_loadu_ps(factors), right = _mm512_loadu_ps(factors + kWide);
  for (int r = 0; r < rows; ++r, c += 2 * kWide) {
    _mm512_storeu_ps(c, _mm512_mul_ps(_mm512_loadu_ps(c), left));
    _mm512_storeu_ps(c + kWide, _mm512_mul_ps(_mm512_loadu_ps(c + kWide), right));
  }
}

}  // namespace

const AttentionTiles& attention_tiles() {
  static const AttentionTiles instance{configure, release, pack_left, pack_right, multiply, scale};
  return instance;
}

}  // namespace trimaran::amx

TRIMARAN_TARGET_END

#endif
