// One row's part of a cell: the codes, scales and offsets of some blocks of the file, spread out.
#pragma once

#include <cstdint>

#include "packed/format.h"

namespace trimaran {

struct RowCell {
  uint8_t codes[256];  // of Q8_0: the bits of an int8
  int8_t scales[16];   // integer scales, or pairs: scale | offset << 4
  int8_t offsets[16];  // integer offsets
  uint16_t half_scales[2];
  uint16_t half_offsets[2];
  uint16_t super_scale;
  uint16_t super_offset;
};

// Reads up to a cell's worth of a row's blocks; what blocks there are not stays zero. `columns` is a multiple
// of the type's block size, at most format.cell_columns.
using ReadCellFn = void (*)(const uint8_t* blocks, int64_t columns, RowCell& cell);

// nullptr where there is no packed layout.
ReadCellFn cell_reader(GgmlType type);

}  // namespace trimaran
