#include "avx2/packed.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "avx2/codes.h"
#include "isa/target.h"
#include "packed/ahead.h"

TRIMARAN_TARGET_BEGIN("avxvnni,avx2,fma,f16c")

#include "avx2/packed_dot.inl"

namespace trimaran::avx2 {
namespace {

// What is added to each number to make it unsigned.
constexpr int bias_of(const Format& f) { return f.kind == CodeKind::centered ? f.center : 128; }

// One instruction adds four products of an unsigned and a signed byte to a 32-bit word. Numbers are made
// unsigned by a bias, and the sums start from -bias · Σ x.
struct DotProducts {
  static constexpr int stays_up(const Format& f, int slot) {
    return f.kind == CodeKind::centered && f.high_bits == 0 ? slot * f.low_bits : 0;
  }

  template <class Tag>
  static __m256i number(__m256i codes) {
    if constexpr (Tag::format.kind == CodeKind::bytes) return _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    if constexpr (Tag::format.kind == CodeKind::levels) return _mm256_shuffle_epi8(levels(-128), codes);
    return codes;
  }

  template <class Tag, int kSlot>
  static __m256i start(const int16_t* lanes) {
    constexpr int bias = bias_of(Tag::format) << stays_up(Tag::format, kSlot);
    if constexpr (bias == 0) return _mm256_setzero_si256();
    return _mm256_madd_epi16(broadcast_word(lanes), _mm256_set1_epi16(bias));
  }

  template <class Tag>
  static __m256i add(__m256i sums, __m256i number, __m256i codes) {
    return _mm256_dpbusd_avx_epi32(sums, number, codes);
  }

  // The reference multiplies integers and then rounds to float; the product of floats is rounded the same
  // way, since a half's sum has less than 24 bits.
  template <class Tag>
  class Scale {
   public:
    Scale(const uint8_t* cell, int s, int row_half) : scales_(_mm256_setzero_ps()) {
      constexpr const Format& f = Tag::format;
      if constexpr (f.integer_scales()) {
        const uint8_t* at = cell + f.scales_at() + s * kStripeRows + 8 * row_half;
        __m256i words = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
        if constexpr (f.scale_kind == ScaleKind::integer_pairs) {
          words = _mm256_and_si256(words, _mm256_set1_epi32(15));
        }
        scales_ = _mm256_cvtepi32_ps(words);
      }
    }

    __m256 times(__m256i sums) const {
      const __m256 floats = _mm256_cvtepi32_ps(sums);
      if constexpr (Tag::format.integer_scales()) return _mm256_mul_ps(floats, scales_);
      return floats;
    }

   private:
    __m256 scales_;
  };
};

}  // namespace

void fill_vnni_dots(DotFn* table) { fill_dots_of<DotProducts>(table); }

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
