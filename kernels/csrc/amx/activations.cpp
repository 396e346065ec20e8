#include "amx/activations.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "isa/target.h"
#include "isa/tiles.h"
#include "quant/half.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")

namespace trimaran::amx {
namespace {

// 32 numbers.
struct Group {
  __m512 first;
  __m512 second;
};

inline __m512i rounded(const Group& x) { return (__m512i)_mm512_cvtne2ps_pbh(x.second, x.first); }

inline __m512 widened(__m256i words) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

inline Group floats(__m512i words) {
  return {widened(_mm512_castsi512_si256(words)), widened(_mm512_extracti64x4_epi64(words, 1))};
}

// Words 0, 2, 1, 3 of each four.
inline void store_line(uint8_t* line, __m512i words) {
  alignas(16) static const uint8_t kOrder[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
  const __m512i order = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kOrder)));
  _mm512_storeu_si512(line, _mm512_shuffle_epi8(words, order));
}

// A sum as two bf16, the first cut off, the second rounded: the error is at most 2^-16 of it.
inline void store_sum(uint8_t* at, float sum) {
  const uint32_t upper = bits_from_float(sum) & 0xffff0000u;
  const uint32_t lower = (bits_from_float(sum - float_from_bits(upper)) + 0x8000u) & 0xffff0000u;
  const uint32_t pair = upper >> 16 | lower;
  std::memcpy(at, &pair, sizeof pair);
  std::memcpy(at + sizeof pair, &pair, sizeof pair);
}

constexpr int kSumBytes = 8;
constexpr int kTileSums = kLineBytes / kSumBytes;

}  // namespace

void round(const float* x, int group, int terms, uint8_t* step) {
  const StepLayout layout{terms};
  Group left{_mm512_loadu_ps(x), _mm512_loadu_ps(x + kHalfColumns)};
  float first = 0, second = 0;
  for (int term = 0; term < terms; ++term) {
    const __m512i words = rounded(left);
    store_line(step + layout.tile(group, term) * kTileBytes, words);
    const Group taken = floats(words);
    left = {_mm512_sub_ps(left.first, taken.first), _mm512_sub_ps(left.second, taken.second)};
    first += _mm512_reduce_add_ps(taken.first);
    second += _mm512_reduce_add_ps(taken.second);
  }
  store_sum(step + layout.group_sums() * kTileBytes + group * kSumBytes, first + second);
  uint8_t* halves = step + (layout.half_sums() + 2 * group / kTileSums) * kTileBytes;
  store_sum(halves + 2 * group % kTileSums * kSumBytes, first);
  store_sum(halves + (2 * group % kTileSums + 1) * kSumBytes, second);
}

}  // namespace trimaran::amx

TRIMARAN_TARGET_END

#endif
