// What of a weight is multiplied in tiles, and what is applied to their sums.
//
// A tile product takes 32 columns. Where scales are shared by 32 (all but Q2_K, Q3_K and Q6_K), tiles hold
// the file's own codes, and each product is scaled by itself. Where 16 share one, tiles hold code × small
// integer, and a whole cell is scaled by its super-scales. Codes of 4 and 5 bits stand in the mantissa
// of 1.0; what that adds, and what a type's offsets add, are products of coefficients with sums of
// activations.
#pragma once

#include "packed/format.h"

namespace trimaran::amx {

constexpr bool defers_scales(const Format& f) { return f.scale_columns == kGroupColumns; }

constexpr int code_bits(const Format& f) { return f.low_bits + f.high_bits; }

// Whether tiles hold 1 + code / unit(f).
constexpr bool is_biased(const Format& f) { return defers_scales(f) && f.kind == CodeKind::centered; }
constexpr int unit(const Format& f) { return is_biased(f) ? 1 << code_bits(f) : 1; }

constexpr bool has_coefficients(const Format& f) { return is_biased(f) || f.has_offsets; }
// Tiles of coefficients for 256 columns: 8 coefficients a tile.
constexpr int coefficient_tiles(const Format& f) { return defers_scales(f) ? 1 : 2; }

// Whether bf16 holds all of code × integer scale: Q2_K's are at most 45, Q3_K's 128, Q6_K's 4096.
constexpr bool is_exact(const Format& f) { return defers_scales(f) || code_bits(f) < 6; }

}  // namespace trimaran::amx
