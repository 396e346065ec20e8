// Packed weights times quantised activations, 8 rows a vector, for any way to add products of bytes. To be
// included within a target region, so that each instruction set compiles a copy of its own.
//
// Products is a class of static members:
//   stays_up(format, slot)                by how many bits codes may stay shifted up where they stand, which
//                                         saves a shift
//   number<Tag>(codes)                    the operand that stands for a vector of codes
//   start<Tag, kSlot>(lanes)              where a half's sums start; lanes as in QuantizedVector
//   add<Tag>(sums, number, codes)         sums + products; codes: 4 columns of x in each lane of 32 bits
//   Scale<Tag>(cell, s, row_half)         .times(sums): float(scale · Σ number · code) of 8 rows, the scale
//                                         being one for f16 scales

namespace trimaran::avx2 {
namespace {

constexpr int kRowHalves = 2;          // a stripe's 16 rows are two vectors of 8
constexpr int kMostTokens = 4;         // what 16 registers hold
constexpr int kChunkBytes = 16 << 10;  // cells that stay in the first-level cache while tokens pass

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

// The operand for the codes of 8 rows × 4 columns.
template <class Products, class Tag, int kSlot>
inline __m256i numbers(const Cell& cell, int g, int v, int half) {
  constexpr const Format& f = Tag::format;
  constexpr int up = Products::stays_up(f, kSlot);
  const int at = v * kVectorBytes + half * 32;
  __m256i codes = load_32(cell.low_run<Tag>(g) + at);
  if constexpr (f.low_bits < 8) codes = field(codes, kSlot * f.low_bits - up, ((1 << f.low_bits) - 1) << up);
  if constexpr (f.high_bits == 1) {
    const __m256i plane = load_32(cell.bytes + f.high_at() + g * kVectorBytes + half * 32);
    const __m256i moved =
        v > f.low_bits ? _mm256_srli_epi16(plane, v - f.low_bits) : _mm256_slli_epi16(plane, f.low_bits - v);
    codes = _mm256_or_si256(codes, _mm256_and_si256(moved, _mm256_set1_epi8(1 << f.low_bits)));
  }
  return Products::template number<Tag>(codes);
}

inline __m256i broadcast_word(const void* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm256_set1_epi32(word);
}

// The activations' scale for sums of numbers that stay shifted up: exactly as if they did not.
template <class Products, class Tag, int kSlot>
inline __m256 scale_of_half(float scale) {
  constexpr int up = Products::stays_up(Tag::format, kSlot);
  const __m256 scales = _mm256_set1_ps(scale);
  if constexpr (up == 0) return scales;
  return _mm256_mul_ps(scales, _mm256_set1_ps(1.0f / (1 << up)));
}

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

// Σ number · code over half h of group g.
template <class Products, class Tag, int kTokens, int kSlot>
inline void half_sums(const Cell& cell, int g, int h, const QuantizedVector* x, int64_t column,
                      __m256i (&sums)[kTokens][kRowHalves]) {
  const int64_t first = column + g * kGroupColumns;
  for (int t = 0; t < kTokens; ++t) {
    const __m256i start = Products::template start<Tag, kSlot>(x[t].lanes + 2 * (first / kHalfColumns + h));
    for (int r = 0; r < kRowHalves; ++r) sums[t][r] = start;
  }
  TRIMARAN_UNROLL_8
  for (int i = 0; i < kHalfVectors; ++i) {
    const int v = h * kHalfVectors + i;
    const __m256i low = numbers<Products, Tag, kSlot>(cell, g, v, 0);
    const __m256i high = numbers<Products, Tag, kSlot>(cell, g, v, 1);
    for (int t = 0; t < kTokens; ++t) {
      const __m256i codes = broadcast_word(x[t].codes + first + v * kVectorColumns);
      sums[t][0] = Products::template add<Tag>(sums[t][0], low, codes);
      sums[t][1] = Products::template add<Tag>(sums[t][1], high, codes);
    }
  }
}

// t += float(scale · Σ number · code) · scale of the activations, for both halves of a group.
template <class Products, class Tag, int kTokens, int kSlot>
inline void add_group(const Cell& cell, int g, const QuantizedVector* x, int64_t column,
                      __m256 (&t)[kTokens][kRowHalves]) {
  constexpr const Format& f = Tag::format;
  TRIMARAN_UNROLL_8
  for (int h = 0; h < 2; ++h) {
    __m256i sums[kTokens][kRowHalves];
    half_sums<Products, Tag, kTokens, kSlot>(cell, g, h, x, column, sums);
    const int64_t half = (column + g * kGroupColumns) / kHalfColumns + h;
    for (int r = 0; r < kRowHalves; ++r) {
      const typename Products::template Scale<Tag> scales(
          cell.bytes, (g * kGroupColumns + h * kHalfColumns) / f.scale_columns, r);
      for (int i = 0; i < kTokens; ++i) {
        const __m256 sum = scales.times(sums[i][r]);
        t[i][r] = _mm256_fmadd_ps(sum, scale_of_half<Products, Tag, kSlot>(x[i].scales[half]), t[i][r]);
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
template <class Products, class Tag, int kTokens, int kSlot>
inline void add_group_to(const Cell& cell, int g, const QuantizedVector* x, int64_t column,
                         __m256 (&sum)[kTokens][kRowHalves]) {
  if constexpr (Tag::format.integer_scales()) {
    add_group<Products, Tag, kTokens, kSlot>(cell, g, x, column, sum);
  } else {
    __m256 t[kTokens][kRowHalves];
    clear<kTokens>(t);
    add_group<Products, Tag, kTokens, kSlot>(cell, g, x, column, t);
    scale_group<Tag, kTokens>(cell.bytes, g, x, column, t, sum);
  }
}

template <class Products, class Tag, int kTokens>
inline void add_groups(const uint8_t* bytes, const uint8_t* ahead, const QuantizedVector* x, int64_t column,
                       __m256 (&acc)[kTokens][kRowHalves]) {
  constexpr const Format& f = Tag::format;
  Cell cell;
  cell.bytes = bytes;
  for (int g = 0; g < f.groups(); g += f.groups_per_byte()) {
    prefetch_part<Tag>(ahead, g);
    if (f.scattered(g)) cell.gather<Tag>(g);
    add_group_to<Products, Tag, kTokens, 0>(cell, g, x, column, acc);
    if constexpr (f.groups_per_byte() > 1)
      add_group_to<Products, Tag, kTokens, 1>(cell, g + 1, x, column, acc);
    if constexpr (f.groups_per_byte() > 2) {
      add_group_to<Products, Tag, kTokens, 2>(cell, g + 2, x, column, acc);
      add_group_to<Products, Tag, kTokens, 3>(cell, g + 3, x, column, acc);
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

template <class Products, class Tag, int kTokens>
inline void add_cell(const uint8_t* cell, const uint8_t* ahead, const QuantizedVector* x, int64_t column,
                     __m256 (&y)[kTokens][kRowHalves]) {
  constexpr const Format& f = Tag::format;
  if constexpr (!f.integer_scales()) {
    add_groups<Products, Tag, kTokens>(cell, ahead, x, column, y);
  } else {
    __m256 acc[kTokens][kRowHalves];
    clear<kTokens>(acc);
    add_groups<Products, Tag, kTokens>(cell, ahead, x, column, acc);
    for (int h = 0; h < kRowHalves; ++h) {
      const __m256 super = halves_at(cell + f.super_at(), h);
      for (int t = 0; t < kTokens; ++t) y[t][h] = _mm256_fmadd_ps(acc[t][h], super, y[t][h]);
    }
    if constexpr (f.has_offsets) subtract_offsets<Tag, kTokens>(cell, x, column, y);
  }
}

// Cells [begin, end) of a stripe for kTokens vectors; out goes on from where it stands.
template <class Products, class Tag, int kTokens>
void add_cells(const uint8_t* stripe, const Ahead& ahead, int64_t begin, int64_t end,
               const QuantizedVector* x, float* out) {
  constexpr const Format& f = Tag::format;
  __m256 y[kTokens][kRowHalves];
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < kRowHalves; ++h) y[t][h] = _mm256_loadu_ps(out + kStripeRows * t + 8 * h);
  }
  for (int64_t i = begin; i < end; ++i) {
    add_cell<Products, Tag, kTokens>(stripe + i * f.cell_bytes(), ahead.at(i), x, i * f.cell_columns, y);
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < kRowHalves; ++h) _mm256_storeu_ps(out + kStripeRows * t + 8 * h, y[t][h]);
  }
}

template <class Products, class Tag>
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
      add_cells<Products, Tag, 4>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
    }
    if (tokens - t == 3) add_cells<Products, Tag, 3>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
    if (tokens - t == 2) add_cells<Products, Tag, 2>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
    if (tokens - t == 1) add_cells<Products, Tag, 1>(stripe, ahead, begin, end, x + t, out + kStripeRows * t);
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
}  // namespace trimaran::avx2
