#include "avx2/packed.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "avx2/vectors.h"
#include "isa/target.h"
#include "packed/ahead.h"

TRIMARAN_TARGET_BEGIN("avx2,fma,f16c")

namespace trimaran::avx2 {
namespace {

constexpr int kRowHalves = 2;          // a stripe's 16 rows are two vectors of 8
constexpr int kMostTokens = 4;         // what 16 registers hold
constexpr int kChunkBytes = 16 << 10;  // cells that stay in the first-level cache while tokens pass

// A half's products are added up in 16-bit lanes, four vectors of two products each. Numbers are below 32, or
// centred and at most 32 in magnitude: 4 · 2 · 32 · 127 fits. Centred sums start from -center · Σ x, so that
// only their end must fit, not what they pass through (codes up to 63). Full bytes are widened after each
// product.
constexpr bool adds_in_16_bits(const Format& f) { return f.kind == CodeKind::centered; }

// By how many bits codes stay shifted up where they stand, which saves a shift, since they still fit as
// above.
constexpr int stays_up(const Format& f, int slot) {
  const int shift = slot * f.low_bits;
  if (!adds_in_16_bits(f) || f.high_bits > 0) return 0;
  const bool fits = f.center > 0 ? f.center << shift <= 32 : ((1 << f.low_bits) - 1) << shift < 32;
  return fits ? shift : 0;
}

// A cell's bytes, and a fourth run (packed/format.h) put together.
struct Cell {
  const uint8_t* bytes;
  alignas(32) uint8_t fourth[kRunBytes];

  template <class Tag>
  void gather(int g) {
    const uint8_t* run = bytes + Tag::format.low_run(g);
    for (int i = 0; i < kRunBytes; i += 32) {
      const __m256i low = field(load_32(run + i), 6, 0x03);
      const __m256i middle = field(load_32(run + kRunBytes + i), 4, 0x0c);
      const __m256i high = field(load_32(run + 2 * kRunBytes + i), 2, 0x30);
      const __m256i all = _mm256_or_si256(_mm256_or_si256(low, middle), high);
      _mm256_store_si256(reinterpret_cast<__m256i*>(fourth + i), all);
    }
  }

  template <class Tag>
  const uint8_t* low_run(int g) const {
    return Tag::format.scattered(g) ? fourth : bytes + Tag::format.low_run(g);
  }
};

// The codes of 8 rows × 4 columns: unsigned, shifted up by stays_up, or the signed number itself.
template <class Tag, int kSlot>
inline __m256i numbers(const Cell& cell, int g, int v, int half) {
  constexpr const Format& f = Tag::format;
  constexpr int up = stays_up(f, kSlot);
  const int at = v * kVectorBytes + half * 32;
  __m256i codes = load_32(cell.low_run<Tag>(g) + at);
  if constexpr (f.low_bits < 8) codes = field(codes, kSlot * f.low_bits - up, ((1 << f.low_bits) - 1) << up);
  if constexpr (f.high_bits == 1) {
    const __m256i plane = load_32(cell.bytes + f.high_at() + g * kVectorBytes + half * 32);
    const __m256i moved =
        v > f.low_bits ? _mm256_srli_epi16(plane, v - f.low_bits) : _mm256_slli_epi16(plane, f.low_bits - v);
    codes = _mm256_or_si256(codes, _mm256_and_si256(moved, _mm256_set1_epi8(1 << f.low_bits)));
  }
  if constexpr (f.kind == CodeKind::levels) codes = iq4_levels(codes);
  return codes;
}

inline __m256i broadcast_word(const void* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm256_set1_epi32(word);
}

// Sums of products of neighbouring bytes: 16-bit pairs where they fit, else 32-bit words.
template <class Tag>
inline __m256i add_products(__m256i sum, __m256i number, __m256i codes) {
  if constexpr (adds_in_16_bits(Tag::format)) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(number, codes));
  } else {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(number), _mm256_sign_epi8(codes, number));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  TRIMARAN_KEEP_ORDER(sum);
  return sum;
}

// Where a half's lanes start, so that they end as if each code had been centred.
template <class Tag, int kSlot>
inline __m256i start_of_half(const int16_t* lanes) {
  constexpr const Format& f = Tag::format;
  if constexpr (f.center == 0) return _mm256_setzero_si256();
  return _mm256_mullo_epi16(broadcast_word(lanes), _mm256_set1_epi16(f.center << stays_up(f, kSlot)));
}

// The activations' scale for sums of numbers that stay shifted up: exactly as if they did not.
template <class Tag, int kSlot>
inline __m256 scale_of_half(float scale) {
  constexpr int up = stays_up(Tag::format, kSlot);
  const __m256 scales = _mm256_set1_ps(scale);
  if constexpr (up == 0) return scales;
  return _mm256_mul_ps(scales, _mm256_set1_ps(1.0f / (1 << up)));
}

// What shuffles 16 scales to words, two alike for each of the 8 rows of a half.
inline __m256i pairs_of_rows(int row_half) {
  const __m256i first = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1,  //
                                         4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7, -1);
  return _mm256_add_epi8(first, _mm256_set1_epi16(static_cast<int16_t>(8 * row_half)));
}

// The integer scales of 8 rows, or ones: what turns sums of products into words.
template <class Tag>
class ScaleOf {
 public:
  ScaleOf(const uint8_t* cell, int s, int row_half) {
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

  __m256i times(__m256i sums) const {
    if constexpr (adds_in_16_bits(Tag::format)) return _mm256_madd_epi16(sums, scales_);
    if constexpr (Tag::format.integer_scales()) return _mm256_mullo_epi32(sums, scales_);
    return sums;
  }

 private:
  __m256i scales_;
};

template <class Tag>
inline __m256 integer_offsets(const uint8_t* cell, int s, int half) {
  constexpr const Format& f = Tag::format;
  constexpr int at = f.scale_kind == ScaleKind::integer_pairs ? f.scales_at() : f.offsets_at();
  const __m128i bytes =
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(cell + at + s * kStripeRows + 8 * half));
  __m256i words = _mm256_cvtepu8_epi32(bytes);
  if constexpr (f.scale_kind == ScaleKind::integer_pairs) words = _mm256_srli_epi32(words, 4);
  return _mm256_cvtepi32_ps(words);
}

inline __m256 halves_at(const uint8_t* halves, int half) {
  return _mm256_cvtph_ps(load_16(halves + 16 * half));
}

// Σ number · code over half h of group g, in 16-bit pairs, or in 32-bit words where those would overflow.
template <class Tag, int kTokens, int kSlot>
inline void half_sums(const Cell& cell, int g, int h, const QuantizedVector* x, int64_t column,
                      __m256i (&sums)[kTokens][kRowHalves]) {
  const int64_t first = column + g * kGroupColumns;
  for (int t = 0; t < kTokens; ++t) {
    const __m256i start = start_of_half<Tag, kSlot>(x[t].lanes + 2 * (first / kHalfColumns + h));
    for (int r = 0; r < kRowHalves; ++r) sums[t][r] = start;
  }
  TRIMARAN_UNROLL_8
  for (int i = 0; i < kHalfVectors; ++i) {
    const int v = h * kHalfVectors + i;
    const __m256i low = numbers<Tag, kSlot>(cell, g, v, 0);
    const __m256i high = numbers<Tag, kSlot>(cell, g, v, 1);
    for (int t = 0; t < kTokens; ++t) {
      const __m256i codes = broadcast_word(x[t].codes + first + v * kVectorColumns);
      sums[t][0] = add_products<Tag>(sums[t][0], low, codes);
      sums[t][1] = add_products<Tag>(sums[t][1], high, codes);
    }
  }
}

// t += float(scale · Σ number · code) · scale of the activations, for both halves of a group.
template <class Tag, int kTokens, int kSlot>
inline void add_group(const Cell& cell, int g, const QuantizedVector* x, int64_t column,
                      __m256 (&t)[kTokens][kRowHalves]) {
  constexpr const Format& f = Tag::format;
  TRIMARAN_UNROLL_8
  for (int h = 0; h < 2; ++h) {
    __m256i sums[kTokens][kRowHalves];
    half_sums<Tag, kTokens, kSlot>(cell, g, h, x, column, sums);
    const int64_t half = (column + g * kGroupColumns) / kHalfColumns + h;
    for (int r = 0; r < kRowHalves; ++r) {
      const ScaleOf<Tag> scales(cell.bytes, (g * kGroupColumns + h * kHalfColumns) / f.scale_columns, r);
      for (int i = 0; i < kTokens; ++i) {
        const __m256 sum = _mm256_cvtepi32_ps(scales.times(sums[i][r]));
        t[i][r] = _mm256_fmadd_ps(sum, scale_of_half<Tag, kSlot>(x[i].scales[half]), t[i][r]);
      }
    }
  }
}

// y += t · scale (+ offset · sum), for a group with f16 scales.
template <class Tag, int kTokens>
inline void scale_group(const uint8_t* cell, int g, const QuantizedVector* x, int64_t column,
                        const __m256 (&t)[kTokens][kRowHalves], __m256 (&y)[kTokens][kRowHalves]) {
  constexpr const Format& f = Tag::format;
  for (int r = 0; r < kRowHalves; ++r) {
    const __m256 scale = halves_at(cell + f.scales_at() + g * f.scale_row(), r);
    for (int i = 0; i < kTokens; ++i) y[i][r] = _mm256_fmadd_ps(t[i][r], scale, y[i][r]);
    if constexpr (f.has_offsets) {
      const __m256 offset = halves_at(cell + f.offsets_at() + g * f.scale_row(), r);
      for (int i = 0; i < kTokens; ++i) {
        const __m256 sum = _mm256_set1_ps(x[i].sums[column / kGroupColumns + g]);
        y[i][r] = _mm256_fmadd_ps(offset, sum, y[i][r]);
      }
    }
  }
}

template <int kTokens>
inline void clear(__m256 (&t)[kTokens][kRowHalves]) {
  for (int i = 0; i < kTokens; ++i) t[i][0] = t[i][1] = _mm256_setzero_ps();
}

// One group into the cell's sum where scales are integers, else into y.
template <class Tag, int kTokens, int kSlot>
inline void add_group_to(const Cell& cell, int g, const QuantizedVector* x, int64_t column,
                         __m256 (&sum)[kTokens][kRowHalves]) {
  if constexpr (Tag::format.integer_scales()) {
    add_group<Tag, kTokens, kSlot>(cell, g, x, column, sum);
  } else {
    __m256 t[kTokens][kRowHalves];
    clear<kTokens>(t);
    add_group<Tag, kTokens, kSlot>(cell, g, x, column, t);
    scale_group<Tag, kTokens>(cell.bytes, g, x, column, t, sum);
  }
}

template <class Tag, int kTokens>
inline void add_groups(const uint8_t* bytes, const uint8_t* ahead, const QuantizedVector* x, int64_t column,
                       __m256 (&acc)[kTokens][kRowHalves]) {
  constexpr const Format& f = Tag::format;
  Cell cell;
  cell.bytes = bytes;
  for (int g = 0; g < f.groups(); g += f.groups_per_byte()) {
    prefetch_part<Tag>(ahead, g);
    if (f.scattered(g)) cell.gather<Tag>(g);
    add_group_to<Tag, kTokens, 0>(cell, g, x, column, acc);
    if constexpr (f.groups_per_byte() > 1) add_group_to<Tag, kTokens, 1>(cell, g + 1, x, column, acc);
    if constexpr (f.groups_per_byte() > 2) {
      add_group_to<Tag, kTokens, 2>(cell, g + 2, x, column, acc);
      add_group_to<Tag, kTokens, 3>(cell, g + 3, x, column, acc);
    }
  }
}

// y -= super-offset · Σ offset · sum of activations.
template <class Tag, int kTokens>
inline void subtract_offsets(const uint8_t* cell, const QuantizedVector* x, int64_t column,
                             __m256 (&y)[kTokens][kRowHalves]) {
  constexpr const Format& f = Tag::format;
  const int64_t first = column / f.scale_columns;
  for (int h = 0; h < kRowHalves; ++h) {
    __m256 u[kTokens];
    for (int t = 0; t < kTokens; ++t) u[t] = _mm256_setzero_ps();
    for (int s = 0; s < f.scales(); ++s) {
      const __m256 offset = integer_offsets<Tag>(cell, s, h);
      for (int t = 0; t < kTokens; ++t) {
        const float* sums = f.scale_columns == kGroupColumns ? x[t].sums : x[t].halves;
        u[t] = _mm256_fmadd_ps(offset, _mm256_set1_ps(sums[first + s]), u[t]);
      }
    }
    const __m256 super = halves_at(cell + f.super_offset_at(), h);
    for (int t = 0; t < kTokens; ++t) y[t][h] = _mm256_fnmadd_ps(u[t], super, y[t][h]);
  }
}

template <class Tag, int kTokens>
inline void add_cell(const uint8_t* cell, const uint8_t* ahead, const QuantizedVector* x, int64_t column,
                     __m256 (&y)[kTokens][kRowHalves]) {
  constexpr const Format& f = Tag::format;
  if constexpr (!f.integer_scales()) {
    add_groups<Tag, kTokens>(cell, ahead, x, column, y);
  } else {
    __m256 acc[kTokens][kRowHalves];
    clear<kTokens>(acc);
    add_groups<Tag, kTokens>(cell, ahead, x, column, acc);
    for (int h = 0; h < kRowHalves; ++h) {
      const __m256 super = halves_at(cell + f.super_at(), h);
      for (int t = 0; t < kTokens; ++t) y[t][h] = _mm256_fmadd_ps(acc[t][h], super, y[t][h]);
    }
    if constexpr (f.has_offsets) subtract_offsets<Tag, kTokens>(cell, x, column, y);
  }
}

// Cells [begin, end) of a stripe for kTokens vectors; out goes on from where it stands.
template <class Tag, int kTokens>
void add_cells(const uint8_t* stripe, const Ahead& ahead, int64_t begin, int64_t end,
               const QuantizedVector* x, float* out) {
  constexpr const Format& f = Tag::format;
  __m256 y[kTokens][kRowHalves];
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < kRowHalves; ++h) y[t][h] = _mm256_loadu_ps(out + kStripeRows * t + 8 * h);
  }
  for (int64_t i = begin; i < end; ++i) {
    add_cell<Tag, kTokens>(stripe + i * f.cell_bytes(), ahead.at(i), x, i * f.cell_columns, y);
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < kRowHalves; ++h) _mm256_storeu_ps(out + kStripeRows * t + 8 * h, y[t][h]);
  }
}

template <class Tag>
void dot(const uint8_t* stripe, int64_t n_cells, const QuantizedVector* x, int tokens, float* out,
         const uint8_t* next) {
  const Ahead ahead(Tag::format, stripe, n_cells, next);
  constexpr int64_t chunk = std::max(1, kChunkBytes / Tag::format.cell_bytes());
  std::fill_n(out, static_cast<int64_t>(tokens) * kStripeRows, 0.0f);
  const int64_t step = tokens <= kMostTokens ? n_cells : chunk;
  for (int64_t begin = 0; begin < n_cells; begin += step) {
    const int64_t end = std::min(n_cells, begin + step);
    int t = 0;
    for (; t + 4 <= tokens; t += 4) {
      add_cells<Tag, 4>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
    }
    if (tokens - t == 3) add_cells<Tag, 3>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
    if (tokens - t == 2) add_cells<Tag, 2>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
    if (tokens - t == 1) add_cells<Tag, 1>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
  }
}

}  // namespace

void fill_dots(DotFn* table) {
  for_each_format([table](auto tag) {
    using Tag = decltype(tag);
    table[static_cast<int>(Tag::format.type)] = dot<Tag>;
  });
}

}  // namespace trimaran::avx2

TRIMARAN_TARGET_END

#endif
