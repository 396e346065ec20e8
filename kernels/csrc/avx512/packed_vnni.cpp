#include "avx512/packed.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "avx512/codes.h"
#include "isa/target.h"
#include "packed/ahead.h"

TRIMARAN_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")

#include "avx512/packed_dot.inl"

namespace trimaran::avx512 {
namespace {

// One instruction adds four products of an unsigned and a signed byte to a 32-bit word. Numbers are made
// unsigned by a bias, and the sums start from -bias · Σ x.
struct DotProducts {
  template <class Tag>
  static __m512i number(__m512i codes) {
    return biased_numbers<Tag>(codes);
  }

  template <class Tag>
  static __m512i start(const int16_t* lanes) {
    constexpr int bias = bias_of(Tag::format);
    if constexpr (bias == 0) return _mm512_setzero_si512();
    return _mm512_madd_epi16(broadcast_word(lanes), _mm512_set1_epi16(bias));
  }

  template <class Tag>
  static __m512i add(__m512i sums, __m512i number, __m512i codes) {
    return _mm512_dpbusd_epi32(sums, number, codes);
  }

  template <class Tag>
  static __m512i words(__m512i sums) {
    return sums;
  }
};

}  // namespace

void fill_vnni_dots(DotFn* table) { fill_dots_of<DotProducts>(table); }

}  // namespace trimaran::avx512

TRIMARAN_TARGET_END

#endif
