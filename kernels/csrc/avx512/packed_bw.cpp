#include "avx512/packed.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "avx512/codes.h"
#include "isa/target.h"
#include "packed/ahead.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx2,fma,f16c")

#include "avx512/packed_dot.inl"

namespace trimaran::avx512 {
namespace {

// Sums of two products in 16 bits. Centred numbers are at most 32 in magnitude, or below 32: 4 · 2 · 32 · 127
// fits, so that a half stays in 16-bit lanes; its sums start from -center · Σ x, so that only their end must
// fit, not what they pass through (codes up to 63). Full bytes are widened after each product.
constexpr bool adds_in_16_bits(const Format& f) { return f.kind == CodeKind::centered; }

struct PairProducts {
  template <class Tag>
  static __m512i number(__m512i codes) {
    if constexpr (Tag::format.kind == CodeKind::levels) return _mm512_shuffle_epi8(levels(0), codes);
    return codes;
  }

  template <class Tag>
  static __m512i start(const int16_t* lanes) {
    constexpr int center = Tag::format.center;
    if constexpr (center == 0) return _mm512_setzero_si512();
    return _mm512_mullo_epi16(broadcast_word(lanes), _mm512_set1_epi16(center));
  }

  // A signed number is split into a magnitude and a sign that goes to the other factor.
  template <class Tag>
  static __m512i add(__m512i sums, __m512i number, __m512i codes) {
    if constexpr (adds_in_16_bits(Tag::format)) {
      sums = _mm512_add_epi16(sums, _mm512_maddubs_epi16(number, codes));
    } else {
      const __mmask64 negative = _mm512_movepi8_mask(number);
      const __m512i factor = _mm512_mask_sub_epi8(codes, negative, _mm512_setzero_si512(), codes);
      const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(number), factor);
      sums = _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
    TRIMARAN_KEEP_ORDER(sums);
    return sums;
  }

  template <class Tag>
  static __m512i words(__m512i sums) {
    if constexpr (adds_in_16_bits(Tag::format)) return _mm512_madd_epi16(sums, _mm512_set1_epi16(1));
    return sums;
  }
};

}  // namespace

void fill_bw_dots(DotFn* table) { fill_dots_of<PairProducts>(table); }

}  // namespace trimaran::avx512

TRIMARAN_TARGET_END

#endif
