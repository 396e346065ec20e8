#include "packed/row_cell.h"

#include "isa/target.h"
#include "quant/blocks.h"
#include "quant/decode_k.h"
#include "quant/decode_legacy.h"
#include "quant/half.h"

namespace trimaran {
namespace {

using scalar::fifth_bit;

void read_nibbles(const uint8_t* qs, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = qs[i] & 15;
    codes[i + 16] = qs[i] >> 4;
  }
}

void add_fifth_bits(const uint8_t* qh, uint8_t* codes) {
  for (int i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(codes[i] | fifth_bit(qh, i));
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
  for (int i = 0; i < 32; ++i) cell.codes[32 * g + i] = static_cast<uint8_t>(block.qs[i]);
}

// Blocks of 256: the whole cell. Loops run over 32 columns at a time, whose shifts are the same, so that
// compilers make vectors of them.

void read_two_bits(const uint8_t* qs, uint8_t* codes) {
  TRIMARAN_UNROLL_8
  for (int run = 0; run < 8; ++run) {
    for (int i = 0; i < 32; ++i) codes[32 * run + i] = qs[run / 4 * 32 + i] >> (run % 4 * 2) & 3;
  }
}

// Bit `run` of bits[i] becomes bit kTo of code 32 run + i.
template <int kTo>
void add_bits(const uint8_t* bits, uint8_t* codes) {
  TRIMARAN_UNROLL_8
  for (int run = 0; run < 8; ++run) {
    for (int i = 0; i < 32; ++i) {
      codes[32 * run + i] = static_cast<uint8_t>(codes[32 * run + i] | (bits[i] >> run & 1) << kTo);
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
  for (int run = 0; run < 4; ++run) {
    for (int i = 0; i < 32; ++i) {
      codes[64 * run + i] = qs[32 * run + i] & 15;
      codes[64 * run + 32 + i] = qs[32 * run + i] >> 4;
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
    const uint8_t* ql = block.ql + 64 * (run / 4) + 32 * (run % 2);
    const uint8_t* qh = block.qh + 32 * (run / 4);
    for (int i = 0; i < 32; ++i) {
      const int low = ql[i] >> (run / 2 % 2 * 4) & 15;
      const int high = qh[i] >> (2 * (run % 4)) & 3;
      cell.codes[32 * run + i] = static_cast<uint8_t>(low | high << 4);
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
  cell = {};
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
