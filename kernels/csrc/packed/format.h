// The packed layout: quantised weights rearranged, bit for bit, so that one vector holds 16 rows.
//
// A matrix is cut into stripes of 16 rows, a stripe into cells of 256 columns (64 where the file's blocks
// have 32), a cell's columns into groups of 32. Within a group, vector v (0..7) holds the codes of columns 4
// v .. 4 v + 3 of all 16 rows: byte 4 row + column % 4. That is the operand order of the dot product
// instructions, which add four neighbouring bytes.
//
// A cell is, one after another:
//   low plane     the low bits of all codes, in runs of 512 bytes = 8 vectors. A byte holds as many groups as
//                 fit: two at 4 bits (group 2 p in the low nibble), four at 2 bits, one at 8 bits. At 3 and 6
//                 bits, in six bits of a byte: two groups or one. Three runs out of four are stored so; the
//                 fourth's six bits are the upper two of the bytes of those three, the first one's lowest
//   high plane    the bit above, where there is one: 64 bytes a group, whose bit v belongs to vector v
//   scales        per group or half group 16 small integers, or per group 16 f16 (rows side by side)
//   offsets       the same shape, where the type has them
//   super-scales  16 f16 for the scales, and 16 more for the offsets, where scales are integers
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/types.h"

namespace trimaran {

constexpr int kStripeRows = 16;
constexpr int kGroupColumns = 32;
constexpr int kHalfColumns = 16;  // columns that share an activation scale
constexpr int kVectorColumns = 4;
constexpr int kVectorBytes = kStripeRows * kVectorColumns;
constexpr int kGroupVectors = kGroupColumns / kVectorColumns;
constexpr int kHalfVectors = kHalfColumns / kVectorColumns;
constexpr int kRunBytes = kGroupVectors * kVectorBytes;

// How a code becomes a number.
enum class CodeKind {
  centered,  // code - center
  bytes,     // the code is an int8
  levels,    // kIq4Levels[code]
};

// How a group's sum becomes a float.
enum class ScaleKind {
  integers,       // super-scale × small integer
  integer_pairs,  // the same, integer and offset in the nibbles of one byte
  halves,         // one f16 a group
};

struct Format {
  GgmlType type;
  int cell_columns;
  int low_bits;
  int high_bits;  // 0 or 1
  CodeKind kind;
  int center;
  ScaleKind scale_kind;
  int scale_columns;  // 32, or 16
  bool has_offsets;   // weight = scale × number + offset; integer offsets are subtracted

  constexpr int groups() const { return cell_columns / kGroupColumns; }
  constexpr int scales() const { return cell_columns / scale_columns; }
  constexpr bool integer_scales() const { return scale_kind != ScaleKind::halves; }
  // Bytes of 16 scales.
  constexpr int scale_row() const { return integer_scales() ? kStripeRows : 2 * kStripeRows; }

  constexpr int low_bytes() const { return kStripeRows * cell_columns * low_bits / 8; }
  constexpr int high_bytes() const { return kStripeRows * cell_columns * high_bits / 8; }
  constexpr int high_at() const { return low_bytes(); }
  constexpr int scales_at() const { return high_at() + high_bytes(); }
  constexpr int offsets_at() const { return scales_at() + scales() * scale_row(); }
  constexpr bool offsets_apart() const { return has_offsets && scale_kind != ScaleKind::integer_pairs; }
  constexpr int super_at() const { return offsets_at() + (offsets_apart() ? scales() * scale_row() : 0); }
  constexpr int super_offset_at() const { return super_at() + 2 * kStripeRows; }
  constexpr int cell_bytes() const {
    if (!integer_scales()) return super_at();
    return super_at() + 2 * kStripeRows * (has_offsets ? 2 : 1);
  }

  // Whether codes fill six bits of a byte, and a fourth run lies in the other two of three.
  constexpr bool in_sixes() const { return low_bits % 3 == 0; }
  constexpr int groups_per_byte() const { return (in_sixes() ? 6 : 8) / low_bits; }
  // Whether a group lies in a fourth run.
  constexpr bool scattered(int group) const { return in_sixes() && group / groups_per_byte() % 4 == 3; }
  // Where a group's low codes lie, and by how many bits they are shifted up there; of a scattered one, the
  // first of the three runs that hold it.
  constexpr int low_run(int group) const {
    const int run = group / groups_per_byte();
    return (in_sixes() ? run / 4 * 3 + run % 4 % 3 : run) * kRunBytes;
  }
  constexpr int low_shift(int group) const { return group % groups_per_byte() * low_bits; }
};

// One constant a type, to be a template argument of kernels.
namespace packed {
struct Q4_0 {
  static constexpr Format format{GgmlType::Q4_0,    64, 4,    0, CodeKind::centered, 8,
                                 ScaleKind::halves, 32, false};
};
struct Q4_1 {
  static constexpr Format format{GgmlType::Q4_1,    64, 4,   0, CodeKind::centered, 0,
                                 ScaleKind::halves, 32, true};
};
struct Q5_0 {
  static constexpr Format format{GgmlType::Q5_0,    64, 4,    1, CodeKind::centered, 16,
                                 ScaleKind::halves, 32, false};
};
struct Q5_1 {
  static constexpr Format format{GgmlType::Q5_1,    64, 4,   1, CodeKind::centered, 0,
                                 ScaleKind::halves, 32, true};
};
struct Q8_0 {
  static constexpr Format format{GgmlType::Q8_0, 64, 8, 0, CodeKind::bytes, 0, ScaleKind::halves, 32, false};
};
struct IQ4_NL {
  static constexpr Format format{GgmlType::IQ4_NL,  64, 4,    0, CodeKind::levels, 0,
                                 ScaleKind::halves, 32, false};
};
struct Q2_K {
  static constexpr Format format{GgmlType::Q2_K,           256, 2,   0, CodeKind::centered, 0,
                                 ScaleKind::integer_pairs, 16,  true};
};
struct Q3_K {
  static constexpr Format format{GgmlType::Q3_K,      256, 3,    0, CodeKind::centered, 4,
                                 ScaleKind::integers, 16,  false};
};
struct Q4_K {
  static constexpr Format format{GgmlType::Q4_K,      256, 4,   0, CodeKind::centered, 0,
                                 ScaleKind::integers, 32,  true};
};
struct Q5_K {
  static constexpr Format format{GgmlType::Q5_K,      256, 4,   1, CodeKind::centered, 0,
                                 ScaleKind::integers, 32,  true};
};
struct Q6_K {
  static constexpr Format format{GgmlType::Q6_K,      256, 6,    0, CodeKind::centered, 32,
                                 ScaleKind::integers, 16,  false};
};
struct IQ4_XS {
  static constexpr Format format{GgmlType::IQ4_XS,    256, 4,    0, CodeKind::levels, 0,
                                 ScaleKind::integers, 32,  false};
};
}  // namespace packed

// Calls visit(tag) for each packed type, tag being packed::Q4_0 and so on.
template <class Visit>
void for_each_format(const Visit& visit) {
  visit(packed::Q4_0{});
  visit(packed::Q4_1{});
  visit(packed::Q5_0{});
  visit(packed::Q5_1{});
  visit(packed::Q8_0{});
  visit(packed::IQ4_NL{});
  visit(packed::Q2_K{});
  visit(packed::Q3_K{});
  visit(packed::Q4_K{});
  visit(packed::Q5_K{});
  visit(packed::Q6_K{});
  visit(packed::IQ4_XS{});
}

// The packed layout of a type; nullptr if it has none and computes from the file's own blocks.
const Format* find_format(GgmlType type);

inline int64_t stripes_of(int64_t rows) { return (rows + kStripeRows - 1) / kStripeRows; }
inline int64_t cells_of(const Format& format, int64_t columns) {
  return (columns + format.cell_columns - 1) / format.cell_columns;
}
inline size_t stripe_bytes(const Format& format, int64_t columns) {
  return static_cast<size_t>(cells_of(format, columns)) * static_cast<size_t>(format.cell_bytes());
}
inline size_t packed_bytes(const Format& format, int64_t rows, int64_t columns) {
  return static_cast<size_t>(stripes_of(rows)) * stripe_bytes(format, columns);
}

}  // namespace trimaran
