// Packed weights times quantised activations, 16 rows a vector, for any way to add products of bytes. To be
// included within a target region, so that each instruction set compiles a copy of its own.
//
// Products is a class of static functions:
//   number<Tag>(codes)               the operand that stands for a vector of codes
//   start<Tag>(lanes)                where a half's sums start; lanes as in QuantizedVector
//   add<Tag>(sums, number, codes)    sums + products; codes: 4 columns of x in each lane of 32 bits
//   words<Tag>(sums)                 sums of one row's four columns, as 32-bit words: Σ number · code

namespace trimaran::avx512 {
namespace {

constexpr int kMostTokens = 8;         // what 32 registers hold
constexpr int kChunkBytes = 16 << 10;  // cells that stay in the first-level cache while tokens pass

inline __m512i broadcast_word(const void* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm512_set1_epi32(word);
}

template <class Products, class Tag, int kTokens, int kSlot, int kVector>
inline void add_vector(const uint8_t* cell, int g, const QuantizedVector* x, int64_t first,
                       __m512i (&sums)[kTokens]) {
  const __m512i number = Products::template number<Tag>(codes_at<Tag, kSlot, kVector>(cell, g));
  for (int t = 0; t < kTokens; ++t) {
    const __m512i codes = broadcast_word(x[t].codes + first + kVector * kVectorColumns);
    sums[t] = Products::template add<Tag>(sums[t], number, codes);
  }
}

// t += float(scale · Σ number · code) · scale of the activations, for one half of group g. The integer product
// would be rounded as the product of floats is, since the sum has less than 24 bits.
template <class Products, class Tag, int kTokens, int kSlot, int kHalf>
inline void add_half(const uint8_t* cell, int g, const QuantizedVector* x, int64_t column,
                     __m512 (&t)[kTokens]) {
  constexpr const Format& f = Tag::format;
  const int64_t first = column + g * kGroupColumns;
  const int64_t half = first / kHalfColumns + kHalf;
  __m512i sums[kTokens];
  for (int i = 0; i < kTokens; ++i) sums[i] = Products::template start<Tag>(x[i].lanes + 2 * half);
  constexpr int v = kHalf * kHalfVectors;
  add_vector<Products, Tag, kTokens, kSlot, v>(cell, g, x, first, sums);
  add_vector<Products, Tag, kTokens, kSlot, v + 1>(cell, g, x, first, sums);
  add_vector<Products, Tag, kTokens, kSlot, v + 2>(cell, g, x, first, sums);
  add_vector<Products, Tag, kTokens, kSlot, v + 3>(cell, g, x, first, sums);
  for (int i = 0; i < kTokens; ++i) {
    __m512 sum = _mm512_cvtepi32_ps(Products::template words<Tag>(sums[i]));
    if constexpr (f.integer_scales()) {
      const int s = f.scale_columns == kGroupColumns ? g : 2 * g + kHalf;
      sum = _mm512_mul_ps(sum, integer_scales<Tag>(cell, s));
    }
    t[i] = _mm512_fmadd_ps(sum, _mm512_set1_ps(x[i].scales[half]), t[i]);
  }
}

template <int kTokens>
inline void clear(__m512 (&t)[kTokens]) {
  for (int i = 0; i < kTokens; ++i) t[i] = _mm512_setzero_ps();
}

// One group into the cell's sum where scales are integers, else into y.
template <class Products, class Tag, int kTokens, int kSlot>
inline void add_group(const uint8_t* cell, int g, const QuantizedVector* x, int64_t column,
                      __m512 (&sum)[kTokens]) {
  constexpr const Format& f = Tag::format;
  if constexpr (f.integer_scales()) {
    add_half<Products, Tag, kTokens, kSlot, 0>(cell, g, x, column, sum);
    add_half<Products, Tag, kTokens, kSlot, 1>(cell, g, x, column, sum);
  } else {
    __m512 t[kTokens];
    clear<kTokens>(t);
    add_half<Products, Tag, kTokens, kSlot, 0>(cell, g, x, column, t);
    add_half<Products, Tag, kTokens, kSlot, 1>(cell, g, x, column, t);
    const __m512 scale = halves_at(cell + f.scales_at() + g * f.scale_row());
    for (int i = 0; i < kTokens; ++i) sum[i] = _mm512_fmadd_ps(t[i], scale, sum[i]);
    if constexpr (f.has_offsets) {
      const __m512 offset = halves_at(cell + f.offsets_at() + g * f.scale_row());
      for (int i = 0; i < kTokens; ++i) {
        const __m512 of_group = _mm512_set1_ps(x[i].sums[column / kGroupColumns + g]);
        sum[i] = _mm512_fmadd_ps(offset, of_group, sum[i]);
      }
    }
  }
}

template <class Products, class Tag, int kTokens>
inline void add_groups(const uint8_t* cell, const uint8_t* ahead, const QuantizedVector* x, int64_t column,
                       __m512 (&sum)[kTokens]) {
  constexpr const Format& f = Tag::format;
  for (int g = 0; g < f.groups(); g += f.groups_per_byte()) {
    prefetch_part<Tag>(ahead, g);
    add_group<Products, Tag, kTokens, 0>(cell, g, x, column, sum);
    if constexpr (f.groups_per_byte() > 1) add_group<Products, Tag, kTokens, 1>(cell, g + 1, x, column, sum);
    if constexpr (f.groups_per_byte() > 2) {
      add_group<Products, Tag, kTokens, 2>(cell, g + 2, x, column, sum);
      add_group<Products, Tag, kTokens, 3>(cell, g + 3, x, column, sum);
    }
  }
}

// y -= super-offset · Σ offset · sum of activations.
template <class Tag, int kTokens>
inline void subtract_offsets(const uint8_t* cell, const QuantizedVector* x, int64_t column,
                             __m512 (&y)[kTokens]) {
  constexpr const Format& f = Tag::format;
  const int64_t first = column / f.scale_columns;
  __m512 u[kTokens];
  clear<kTokens>(u);
  for (int s = 0; s < f.scales(); ++s) {
    const __m512 offset = integer_offsets<Tag>(cell, s);
    for (int t = 0; t < kTokens; ++t) {
      const float* sums = f.scale_columns == kGroupColumns ? x[t].sums : x[t].halves;
      u[t] = _mm512_fmadd_ps(offset, _mm512_set1_ps(sums[first + s]), u[t]);
    }
  }
  const __m512 super = halves_at(cell + f.super_offset_at());
  for (int t = 0; t < kTokens; ++t) y[t] = _mm512_fnmadd_ps(u[t], super, y[t]);
}

template <class Products, class Tag, int kTokens>
inline void add_cell(const uint8_t* cell, const uint8_t* ahead, const QuantizedVector* x, int64_t column,
                     __m512 (&y)[kTokens]) {
  constexpr const Format& f = Tag::format;
  if constexpr (!f.integer_scales()) {
    add_groups<Products, Tag, kTokens>(cell, ahead, x, column, y);
  } else {
    __m512 sum[kTokens];
    clear<kTokens>(sum);
    add_groups<Products, Tag, kTokens>(cell, ahead, x, column, sum);
    const __m512 super = halves_at(cell + f.super_at());
    for (int t = 0; t < kTokens; ++t) y[t] = _mm512_fmadd_ps(sum[t], super, y[t]);
    if constexpr (f.has_offsets) subtract_offsets<Tag, kTokens>(cell, x, column, y);
  }
}

// Cells [begin, end) of a stripe for kTokens vectors; out goes on from where it stands.
template <class Products, class Tag, int kTokens>
void add_cells(const uint8_t* stripe, const Ahead& ahead, int64_t begin, int64_t end, const QuantizedVector* x,
               float* out) {
  constexpr const Format& f = Tag::format;
  __m512 y[kTokens];
  for (int t = 0; t < kTokens; ++t) y[t] = _mm512_loadu_ps(out + kStripeRows * t);
  for (int64_t i = begin; i < end; ++i) {
    add_cell<Products, Tag, kTokens>(stripe + i * f.cell_bytes(), ahead.at(i), x, i * f.cell_columns, y);
  }
  for (int t = 0; t < kTokens; ++t) _mm512_storeu_ps(out + kStripeRows * t, y[t]);
}

// All tokens, in passes of 8, 4, 2 and 1.
template <class Products, class Tag>
void pass_tokens(const uint8_t* stripe, const Ahead& ahead, int64_t begin, int64_t end,
                 const QuantizedVector* x, int tokens, float* out) {
  int t = 0;
  for (; t + 8 <= tokens; t += 8) {
    add_cells<Products, Tag, 8>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
  }
  if ((tokens & 4) != 0) {
    add_cells<Products, Tag, 4>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
    t += 4;
  }
  if ((tokens & 2) != 0) {
    add_cells<Products, Tag, 2>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
    t += 2;
  }
  if ((tokens & 1) != 0) add_cells<Products, Tag, 1>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
}

template <class Products, class Tag>
void dot(const uint8_t* stripe, int64_t n_cells, const QuantizedVector* x, int tokens, float* out,
         const uint8_t* next) {
  const Ahead ahead(Tag::format, stripe, n_cells, next);
  constexpr int64_t chunk = std::max(1, kChunkBytes / Tag::format.cell_bytes());
  std::fill_n(out, static_cast<int64_t>(tokens) * kStripeRows, 0.0f);
  const bool one_pass = tokens <= kMostTokens && (tokens & (tokens - 1)) == 0;
  const int64_t step = one_pass ? n_cells : chunk;
  for (int64_t begin = 0; begin < n_cells; begin += step) {
    pass_tokens<Products, Tag>(stripe, ahead, begin, std::min(n_cells, begin + step), x, tokens, out);
  }
}

template <class Products>
void fill_dots_of(DotFn* table) {
  for_each_format([table](auto tag) {
    using Tag = decltype(tag);
    table[static_cast<int>(Tag::format.type)] = dot<Products, Tag>;
  });
}

}  // namespace
}  // namespace trimaran::avx512
