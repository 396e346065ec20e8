#include "packed/pack.h"

#include <algorithm>
#include <cstring>

#include "packed/row_cell.h"

namespace trimaran {
namespace {

void store_u16(uint8_t* p, uint16_t value) {
  p[0] = static_cast<uint8_t>(value);
  p[1] = static_cast<uint8_t>(value >> 8);
}

// Four codes of a vector as bytes of a word, in the order of columns.
uint32_t four_codes(const uint8_t* codes) {
  uint32_t word;
  std::memcpy(&word, codes, sizeof word);
  return word;
}

void merge_word(uint8_t* dst, uint32_t bits) {
  uint32_t word;
  std::memcpy(&word, dst, sizeof word);
  word |= bits;
  std::memcpy(dst, &word, sizeof word);
}

// Bytes are handled four at a time: shifts below never carry a bit into a neighbour, since codes are masked.
void place_codes(const Format& f, const RowCell& row, int r, uint8_t* cell) {
  const auto low_mask = static_cast<uint32_t>(0x01010101u * ((1u << f.low_bits) - 1u));
  for (int g = 0; g < f.groups(); ++g) {
    for (int v = 0; v < kGroupVectors; ++v) {
      const uint32_t codes = four_codes(row.codes + kGroupColumns * g + kVectorColumns * v);
      uint8_t* low = cell + f.low_run(g) + v * kVectorBytes + kVectorColumns * r;
      merge_word(low, (codes & low_mask) << f.low_shift(g));
      const uint32_t above = (codes & ~low_mask) >> f.low_bits;
      if (f.high_bits == 1) {
        merge_word(cell + f.high_at() + g * kVectorBytes + kVectorColumns * r, above << v);
      } else if (f.high_bits == 2) {
        uint8_t* half = cell + f.high_at() + (2 * g + v / 4) * kVectorBytes;
        merge_word(half + kVectorColumns * r, above << (2 * (v % 4)));
      }
    }
  }
}

void place_scales(const Format& f, const RowCell& row, int r, uint8_t* cell) {
  for (int s = 0; s < f.scales(); ++s) {
    uint8_t* scale = cell + f.scales_at() + s * f.scale_row();
    uint8_t* offset = cell + f.offsets_at() + s * f.scale_row();
    if (f.integer_scales()) {
      scale[r] = static_cast<uint8_t>(row.scales[s]);
      if (f.offsets_apart()) offset[r] = static_cast<uint8_t>(row.offsets[s]);
    } else {
      store_u16(scale + 2 * r, row.half_scales[s]);
      if (f.offsets_apart()) store_u16(offset + 2 * r, row.half_offsets[s]);
    }
  }
  if (!f.integer_scales()) return;
  store_u16(cell + f.super_at() + 2 * r, row.super_scale);
  if (f.has_offsets) store_u16(cell + f.super_offset_at() + 2 * r, row.super_offset);
}

void pack_stripe(const Format& f, const RowMatrix& source, int64_t stripe, uint8_t* dst) {
  const ReadCellFn read = cell_reader(f.type);
  const int64_t first = stripe * kStripeRows;
  const int rows = static_cast<int>(std::min<int64_t>(kStripeRows, source.rows - first));
  RowCell row;
  for (int64_t c = 0; c < source.columns; c += f.cell_columns) {
    uint8_t* cell = dst + c / f.cell_columns * f.cell_bytes();
    std::memset(cell, 0, static_cast<size_t>(f.cell_bytes()));
    const int64_t columns = std::min<int64_t>(f.cell_columns, source.columns - c);
    for (int r = 0; r < rows; ++r) {
      read(source.data + static_cast<size_t>(first + r) * source.row_bytes + source.traits->row_bytes(c),
           columns, row);
      place_codes(f, row, r, cell);
      place_scales(f, row, r, cell);
    }
  }
}

}  // namespace

void pack(ThreadPool& pool, const Format& format, const RowMatrix& source, uint8_t* dst) {
  const size_t size = stripe_bytes(format, source.columns);
  pool.parallel_for(stripes_of(source.rows), [&](int64_t stripe, int) {
    pack_stripe(format, source, stripe, dst + static_cast<size_t>(stripe) * size);
  });
}

}  // namespace trimaran
