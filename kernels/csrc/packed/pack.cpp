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

// Bytes of a row's codes are handled eight at a time: shifts never carry a bit into a neighbour, since codes
// are masked.
constexpr uint64_t kEach = 0x0101010101010101u;
constexpr int kWordBytes = 8;

uint64_t load_word(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

void store_word(uint8_t* p, uint64_t word) { std::memcpy(p, &word, sizeof word); }

// A row's share of a cell's planes: 4 bytes of each vector, one vector after another.
template <class Tag>
struct RowPlanes {
  static constexpr const Format& f = Tag::format;
  static constexpr int kBytes = (f.low_bytes() + f.high_bytes()) / kStripeRows;
  uint8_t bytes[kBytes];
};

// The low codes of columns i .. i + 7 of the groups that share bytes with group g.
template <class Tag>
uint64_t low_codes(const RowCell& row, int g, int i) {
  constexpr const Format& f = Tag::format;
  uint64_t word = 0;
  for (int k = 0; k < f.groups_per_byte(); ++k) {
    const uint64_t codes = load_word(row.codes + kGroupColumns * (g + k) + i);
    word |= (codes & ((1u << f.low_bits) - 1u) * kEach) << (k * f.low_bits);
  }
  return word;
}

// Three runs in six bits, and a fourth in the other two.
template <class Tag>
void place_sixes(const RowCell& row, int g, uint8_t* dst) {
  constexpr int step = Tag::format.groups_per_byte();
  for (int i = 0; i < kGroupColumns; i += kWordBytes) {
    const uint64_t fourth = low_codes<Tag>(row, g + 3 * step, i);
    for (int run = 0; run < 3; ++run) {
      const uint64_t upper = (fourth >> (2 * run) & 3 * kEach) << 6;
      store_word(dst + run * kGroupColumns + i, low_codes<Tag>(row, g + run * step, i) | upper);
    }
  }
}

// The bits above the low ones of group g: bit v of a byte is that of vector v.
template <class Tag>
uint32_t high_bits(const RowCell& row, int g) {
  uint64_t bits = 0;  // of even vectors, then of odd ones
  for (int i = 0; i < kGroupColumns; i += kWordBytes) {
    const uint64_t codes = load_word(row.codes + kGroupColumns * g + i);
    bits |= (codes >> Tag::format.low_bits & kEach) << (i / kVectorColumns);
  }
  return static_cast<uint32_t>(bits) | static_cast<uint32_t>(bits >> 32) << 1;
}

template <class Tag>
void place_row(const RowCell& row, RowPlanes<Tag>& planes) {
  constexpr const Format& f = Tag::format;
  uint8_t* dst = planes.bytes;
  constexpr int step = f.groups_per_byte() * (f.in_sixes() ? 4 : 1);
  for (int g = 0; g < f.groups(); g += step) {
    if constexpr (f.in_sixes()) {
      place_sixes<Tag>(row, g, dst);
      dst += 3 * kGroupColumns;
    } else {
      for (int i = 0; i < kGroupColumns; i += kWordBytes) store_word(dst + i, low_codes<Tag>(row, g, i));
      dst += kGroupColumns;
    }
  }
  if constexpr (f.high_bits > 0) {
    for (int g = 0; g < f.groups(); ++g) {
      const uint32_t bits = high_bits<Tag>(row, g);
      std::memcpy(dst + g * kVectorColumns, &bits, sizeof bits);
    }
  }
}

// Rows side by side: what are a row's 4 bytes of a vector becomes the vector of 16 rows.
template <class Tag>
void place_codes(const Rows& rows, uint8_t* cell) {
  RowPlanes<Tag> planes[kStripeRows];
  for (int r = 0; r < kStripeRows; ++r) place_row<Tag>(rows[static_cast<size_t>(r)], planes[r]);
  for (int i = 0; i < RowPlanes<Tag>::kBytes; i += kVectorColumns) {
    for (const RowPlanes<Tag>& row : planes) {
      std::memcpy(cell, row.bytes + i, kVectorColumns);
      cell += kVectorColumns;
    }
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
