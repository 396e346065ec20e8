#include "packed/pack.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "packed/row_cell.h"

namespace trimaran {
namespace {

void store_u16(uint8_t* p, uint16_t value) {
  p[0] = static_cast<uint8_t>(value);
  p[1] = static_cast<uint8_t>(value >> 8);
}

// The rows of one cell of a stripe, spread out.
using Rows = std::array<RowCell, kStripeRows>;

// Four codes of a vector as bytes of a word, in the order of columns. Bytes are handled four at a time:
// shifts never carry a bit into a neighbour, since codes are masked.
uint32_t four_codes(const RowCell& row, int g, int v) {
  uint32_t word;
  std::memcpy(&word, row.codes + kGroupColumns * g + kVectorColumns * v, sizeof word);
  return word;
}

constexpr uint32_t low_mask(const Format& f) { return 0x01010101u * ((1u << f.low_bits) - 1u); }

// The low codes of vector v of the groups that share bytes with group g.
template <class Tag>
uint32_t low_codes(const RowCell& row, int g, int v) {
  constexpr const Format& f = Tag::format;
  uint32_t word = 0;
  for (int i = 0; i < f.groups_per_byte(); ++i) {
    word |= (four_codes(row, g + i, v) & low_mask(f)) << (i * f.low_bits);
  }
  return word;
}

// Vector v of the low plane's run that starts with group g.
template <class Tag>
void place_low(const Rows& rows, int g, int v, uint8_t* cell) {
  constexpr const Format& f = Tag::format;
  uint8_t* dst = cell + f.low_run(g) + v * kVectorBytes;
  for (const RowCell& row : rows) {
    uint32_t word = low_codes<Tag>(row, g, v);
    if constexpr (f.in_sixes()) {  // and two bits of the fourth run
      const int run = g / f.groups_per_byte() % 4;
      const uint32_t fourth = low_codes<Tag>(row, g + (3 - run) * f.groups_per_byte(), v);
      word |= (fourth >> (2 * run) & 0x03030303u) << 6;
    }
    std::memcpy(dst, &word, sizeof word);
    dst += sizeof word;
  }
}

// 64 bytes of the high plane: the upper bits of group g.
template <class Tag>
void place_high(const Rows& rows, int g, uint8_t* dst) {
  constexpr const Format& f = Tag::format;
  for (const RowCell& row : rows) {
    uint32_t word = 0;
    for (int v = 0; v < kGroupVectors; ++v) {
      word |= (four_codes(row, g, v) & ~low_mask(f)) >> f.low_bits << v;
    }
    std::memcpy(dst, &word, sizeof word);
    dst += sizeof word;
  }
}

template <class Tag>
void place_codes(const Rows& rows, uint8_t* cell) {
  constexpr const Format& f = Tag::format;
  for (int g = 0; g < f.groups(); g += f.groups_per_byte()) {
    if (f.scattered(g)) continue;
    for (int v = 0; v < kGroupVectors; ++v) place_low<Tag>(rows, g, v, cell);
  }
  if constexpr (f.high_bits > 0) {
    for (int g = 0; g < f.groups(); ++g) place_high<Tag>(rows, g, cell + f.high_at() + g * kVectorBytes);
  }
}

template <class Tag>
void place_scales(const RowCell& row, int r, uint8_t* cell) {
  constexpr const Format& f = Tag::format;
  for (int s = 0; s < f.scales(); ++s) {
    uint8_t* scale = cell + f.scales_at() + s * f.scale_row();
    uint8_t* offset = cell + f.offsets_at() + s * f.scale_row();
    if constexpr (f.integer_scales()) {
      scale[r] = static_cast<uint8_t>(row.scales[s]);
      if (f.offsets_apart()) offset[r] = static_cast<uint8_t>(row.offsets[s]);
    } else {
      store_u16(scale + 2 * r, row.half_scales[s]);
      if (f.offsets_apart()) store_u16(offset + 2 * r, row.half_offsets[s]);
    }
  }
  if constexpr (f.integer_scales()) {
    store_u16(cell + f.super_at() + 2 * r, row.super_scale);
    if (f.has_offsets) store_u16(cell + f.super_offset_at() + 2 * r, row.super_offset);
  }
}

template <class Tag>
void pack_stripe(const RowMatrix& source, int64_t stripe, uint8_t* dst) {
  constexpr const Format& f = Tag::format;
  const ReadCellFn read = cell_reader(f.type);
  const int64_t first = stripe * kStripeRows;
  const auto count = static_cast<size_t>(std::min<int64_t>(kStripeRows, source.rows - first));
  Rows rows{};  // those that are not there stay zero
  for (int64_t c = 0; c < source.columns; c += f.cell_columns) {
    const int64_t columns = std::min<int64_t>(f.cell_columns, source.columns - c);
    const uint8_t* blocks =
        source.data + static_cast<size_t>(first) * source.row_bytes + source.traits->row_bytes(c);
    for (size_t r = 0; r < count; ++r) read(blocks + r * source.row_bytes, columns, rows[r]);
    uint8_t* cell = dst + c / f.cell_columns * f.cell_bytes();
    place_codes<Tag>(rows, cell);
    for (int r = 0; r < kStripeRows; ++r) place_scales<Tag>(rows[static_cast<size_t>(r)], r, cell);
  }
}

using PackStripeFn = void (*)(const RowMatrix& source, int64_t stripe, uint8_t* dst);

PackStripeFn stripe_packer(GgmlType type) {
  PackStripeFn found = nullptr;
  for_each_format([&found, type](auto tag) {
    using Tag = decltype(tag);
    if (Tag::format.type == type) found = pack_stripe<Tag>;
  });
  return found;
}

}  // namespace

void pack(ThreadPool& pool, const Format& format, const RowMatrix& source, uint8_t* dst) {
  const size_t size = stripe_bytes(format, source.columns);
  const PackStripeFn pack_one = stripe_packer(format.type);
  pool.parallel_for(stripes_of(source.rows), [&](int64_t stripe, int) {
    pack_one(source, stripe, dst + static_cast<size_t>(stripe) * size);
  });
}

}  // namespace trimaran
