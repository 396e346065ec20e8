#include "packed/row_cell.h"

#include <cstring>

#include "isa/target.h"
#include "quant/blocks.h"
#include "quant/decode_k.h"
#include "quant/decode_legacy.h"
#include "quant/half.h"

namespace trimaran {
namespace {

// Eight codes side by side. Shifts may carry bits into a neighbour, where a mask removes them.
using Codes = uint64_t;
constexpr Codes kEach = 0x0101010101010101u;
constexpr int kCodes = sizeof(Codes);

Codes load_codes(const uint8_t* p) {
  Codes codes;
  std::memcpy(&codes, p, sizeof codes);
  return codes;
}

void store_codes(uint8_t* p, Codes codes) { std::memcpy(p, &codes, sizeof codes); }

void read_nibbles(const uint8_t* qs, uint8_t* codes) {
  for (int i = 0; i < 16; i += kCodes) {
    const Codes both = load_codes(qs + i);
    store_codes(codes + i, both & 15 * kEach);
    store_codes(codes + 16 + i, both >> 4 & 15 * kEach);
  }
}

// Bit i of a byte to the lowest bit of code i.
Codes spread_bits(uint8_t bits) {
  const Codes apart = bits * kEach & 0x8040201008040201u;
  return (apart + 0x7f * kEach) >> 7 & kEach;
}

void add_fifth_bits(const uint8_t* qh, uint8_t* codes) {
  for (int i = 0; i < 4; ++i) {
    store_codes(codes + kCodes * i, load_codes(codes + kCodes * i) | spread_bits(qh[i]) << 4);
  }
}

// Blocks of 32: group g of the cell.

void read(const BlockQ4_0& block, int g, RowCell& cell) {
  cell.half_scales[g] = load_u16(block.d);
  read_nibbles(block.qs, cell.codes + 32 * g);
}

void read(const BlockIQ4_NL& block, int g, RowCell& cell) {
  cell.half_scales[g] = load_u16(block.d);
  read_nibbles(block.qs, cell.codes + 32 * g);
}

void read(const BlockQ4_1& block, int g, RowCell& cell) {
  cell.half_scales[g] = load_u16(block.d);
  cell.half_offsets[g] = load_u16(block.m);
  read_nibbles(block.qs, cell.codes + 32 * g);
}

void read(const BlockQ5_0& block, int g, RowCell& cell) {
  cell.half_scales[g] = load_u16(block.d);
  read_nibbles(block.qs, cell.codes + 32 * g);
  add_fifth_bits(block.qh, cell.codes + 32 * g);
}

void read(const BlockQ5_1& block, int g, RowCell& cell) {
  cell.half_scales[g] = load_u16(block.d);
  cell.half_offsets[g] = load_u16(block.m);
  read_nibbles(block.qs, cell.codes + 32 * g);
  add_fifth_bits(block.qh, cell.codes + 32 * g);
}

void read(const BlockQ8_0& block, int g, RowCell& cell) {
  cell.half_scales[g] = load_u16(block.d);
  std::memcpy(cell.codes + 32 * g, block.qs, 32);
}

// Blocks of 256: the whole cell, in runs of 32 columns, whose shifts are constants once unrolled.

void read_two_bits(const uint8_t* qs, uint8_t* codes) {
  TRIMARAN_UNROLL_8
  for (int run = 0; run < 8; ++run) {
    for (int i = 0; i < 32; i += kCodes) {
      const Codes both = load_codes(qs + run / 4 * 32 + i);
      store_codes(codes + 32 * run + i, both >> (run % 4 * 2) & 3 * kEach);
    }
  }
}

// Bit `run` of bits[i] becomes bit kTo of code 32 run + i.
template <int kTo>
void add_bits(const uint8_t* bits, uint8_t* codes) {
  TRIMARAN_UNROLL_8
  for (int run = 0; run < 8; ++run) {
    for (int i = 0; i < 32; i += kCodes) {
      const Codes bit = load_codes(bits + i) >> run & kEach;
      store_codes(codes + 32 * run + i, load_codes(codes + 32 * run + i) | bit << kTo);
    }
  }
}

void read(const BlockQ2_K& block, int, RowCell& cell) {
  cell.super_scale = load_u16(block.d);
  cell.super_offset = load_u16(block.dmin);
  for (int j = 0; j < 16; ++j) cell.scales[j] = static_cast<int8_t>(block.scales[j]);
  read_two_bits(block.qs, cell.codes);
}

void read(const BlockQ3_K& block, int, RowCell& cell) {
  cell.super_scale = load_u16(block.d);
  for (int j = 0; j < 16; ++j) cell.scales[j] = static_cast<int8_t>(scalar::q3_scale(block.scales, j));
  read_two_bits(block.qs, cell.codes);
  add_bits<2>(block.hmask, cell.codes);
}

void read_scale_mins(const uint8_t* scales, RowCell& cell) {
  for (int j = 0; j < 8; ++j) {
    const scalar::ScaleMin sm = scalar::scale_min(scales, j);
    cell.scales[j] = static_cast<int8_t>(sm.scale);
    cell.offsets[j] = static_cast<int8_t>(sm.min);
  }
}

void read_nibble_runs(const uint8_t* qs, uint8_t* codes) {
  TRIMARAN_UNROLL_8
  for (int run = 0; run < 8; ++run) {
    for (int i = 0; i < 32; i += kCodes) {
      const Codes both = load_codes(qs + run / 2 * 32 + i);
      store_codes(codes + 32 * run + i, both >> (run % 2 * 4) & 15 * kEach);
    }
  }
}

void read(const BlockQ4_K& block, int, RowCell& cell) {
  cell.super_scale = load_u16(block.d);
  cell.super_offset = load_u16(block.dmin);
  read_scale_mins(block.scales, cell);
  read_nibble_runs(block.qs, cell.codes);
}

void read(const BlockQ5_K& block, int, RowCell& cell) {
  cell.super_scale = load_u16(block.d);
  cell.super_offset = load_u16(block.dmin);
  read_scale_mins(block.scales, cell);
  read_nibble_runs(block.qs, cell.codes);
  add_bits<4>(block.qh, cell.codes);
}

void read(const BlockQ6_K& block, int, RowCell& cell) {
  cell.super_scale = load_u16(block.d);
  for (int j = 0; j < 16; ++j) cell.scales[j] = block.scales[j];
  TRIMARAN_UNROLL_8
  for (int run = 0; run < 8; ++run) {
    for (int i = 0; i < 32; i += kCodes) {
      const Codes low = load_codes(block.ql + 64 * (run / 4) + 32 * (run % 2) + i) >> (run / 2 % 2 * 4);
      const Codes high = load_codes(block.qh + 32 * (run / 4) + i) >> (2 * (run % 4));
      store_codes(cell.codes + 32 * run + i, (low & 15 * kEach) | (high & 3 * kEach) << 4);
    }
  }
}

void read(const BlockIQ4_XS& block, int, RowCell& cell) {
  cell.super_scale = load_u16(block.d);
  for (int j = 0; j < 8; ++j) {
    cell.scales[j] = static_cast<int8_t>(scalar::iq4_scale(block, j));
    read_nibbles(block.qs + 16 * j, cell.codes + 32 * j);
  }
}

template <class Block, int kColumns>
void read_cell(const uint8_t* blocks, int64_t columns, RowCell& cell) {
  constexpr int64_t kWhole = kColumns == 256 ? 256 : 64;
  if (columns < kWhole) cell = {};
  for (int i = 0; i < columns / kColumns; ++i) {
    read(reinterpret_cast<const Block*>(blocks)[i], i, cell);
  }
}

}  // namespace

ReadCellFn cell_reader(GgmlType type) {
  switch (type) {
    case GgmlType::Q4_0:
      return read_cell<BlockQ4_0, 32>;
    case GgmlType::Q4_1:
      return read_cell<BlockQ4_1, 32>;
    case GgmlType::Q5_0:
      return read_cell<BlockQ5_0, 32>;
    case GgmlType::Q5_1:
      return read_cell<BlockQ5_1, 32>;
    case GgmlType::Q8_0:
      return read_cell<BlockQ8_0, 32>;
    case GgmlType::IQ4_NL:
      return read_cell<BlockIQ4_NL, 32>;
    case GgmlType::Q2_K:
      return read_cell<BlockQ2_K, 256>;
    case GgmlType::Q3_K:
      return read_cell<BlockQ3_K, 256>;
    case GgmlType::Q4_K:
      return read_cell<BlockQ4_K, 256>;
    case GgmlType::Q5_K:
      return read_cell<BlockQ5_K, 256>;
    case GgmlType::Q6_K:
      return read_cell<BlockQ6_K, 256>;
    case GgmlType::IQ4_XS:
      return read_cell<BlockIQ4_XS, 256>;
    default:
      return nullptr;
  }
}

}  // namespace trimaran
