#include "avx2/packed.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "avx2/codes.h"
#include "isa/target.h"
#include "packed/ahead.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

#include "avx2/packed_dot.inl"

namespace trimaran::avx2 {
namespace {

// A half's products are added up in 16-bit lanes, four vectors of two products each. Numbers are below 32, or
// centred and at most 32 in magnitude: 4 · 2 · 32 · 127 fits. Centred sums start from -center · Σ x, so that
// only their end must fit, not what they pass through (codes up to 63). Full bytes are widened after each
// product.
constexpr bool adds_in_16_bits(const Format& f) { return f.kind == CodeKind::centered; }

// What shuffles 16 scales to words, two alike for each of the 8 rows of a half.
inline __m256i pairs_of_rows(int row_half) {
  const __m256i first = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1,  //
                                         4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1);
  return _mm256_add_epi8(first, _mm256_set1_epi16(static_cast<int16_t>(8 * row_half)));
}

struct PairProducts {
  static constexpr int stays_up(const Format& f, int slot) {
    const int shift = slot * f.low_bits;
    if (!adds_in_16_bits(f) || f.high_bits > 0) return 0;
    const bool fits = f.center > 0 ? f.center << shift <= 32 : ((1 << f.low_bits) - 1) << shift < 32;
    return fits ? shift : 0;
  }

  template <class Tag>
  static __m256i number(__m256i codes) {
    if constexpr (Tag::format.kind == CodeKind::levels) return _mm256_shuffle_epi8(levels(0), codes);
    return codes;
  }

  template <class Tag, int kSlot>
  static __m256i start(const int16_t* lanes) {
    constexpr const Format& f = Tag::format;
    if constexpr (f.center == 0) return _mm256_setzero_si256();
    return _mm256_mullo_epi16(broadcast_word(lanes), _mm256_set1_epi16(f.center << stays_up(f, kSlot)));
  }

  // A signed number is split into a magnitude and a sign that goes to the other factor.
  template <class Tag>
  static __m256i add(__m256i sums, __m256i number, __m256i codes) {
    if constexpr (adds_in_16_bits(Tag::format)) {
      sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(number, codes));
    } else {
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(number), _mm256_sign_epi8(codes, number));
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    TRIMARAN_KEEP_ORDER(sums);
    return sums;
  }

  // The integer scales of 8 rows, or ones: what turns sums of products into words.
  template <class Tag>
  class Scale {
   public:
    Scale(const uint8_t* cell, int s, int row_half) {
      constexpr const Format& f = Tag::format;
      const uint8_t* at = cell + f.scales_at() + s * kStripeRows;
      if constexpr (!f.integer_scales()) {
        scales_ = _mm256_set1_epi16(1);
      } else if constexpr (f.has_offsets) {  // unsigned
        __m256i bytes = _mm256_broadcastsi128_si256(load_16(at));
        if constexpr (f.scale_kind == ScaleKind::integer_pairs) {
          bytes = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
        }
        scales_ = _mm256_shuffle_epi8(bytes, pairs_of_rows(row_half));
      } else {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at + 8 * row_half));
        if constexpr (adds_in_16_bits(f)) {
          scales_ = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(bytes, bytes));  // one for each of a pair
        } else {
          scales_ = _mm256_cvtepi8_epi32(bytes);
        }
      }
    }

    __m256 times(__m256i sums) const {
      if constexpr (adds_in_16_bits(Tag::format)) {
        sums = _mm256_madd_epi16(sums, scales_);
      } else if constexpr (Tag::format.integer_scales()) {
        sums = _mm256_mullo_epi32(sums, scales_);
      }
      return _mm256_cvtepi32_ps(sums);
    }

   private:
    __m256i scales_;
  };
};

}  // namespace

void fill_dots(DotFn* table) { fill_dots_of<PairProducts>(table); }

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
