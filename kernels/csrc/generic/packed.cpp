#include "generic/packed.h"

#include <cmath>
#include <limits>

#include "quant/half.h"
#include "quant/iq_tables.h"

namespace trimaran::generic {
namespace {

// max |x| of a half, or NaN if one is not finite.
float largest_magnitude(const float* x) {
  float largest = 0.0f;
  for (int i = 0; i < kHalfColumns; ++i) {
    const float magnitude = std::fabs(x[i]);
    if (!(magnitude <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
    if (magnitude > largest) largest = magnitude;
  }
  return largest;
}

// Squared rounding error in units of the scale.
float squared_error(const float* x, float inverse) {
  float lane[8];
  for (int i = 0; i < 8; ++i) {
    const float low = x[i] * inverse - std::nearbyintf(x[i] * inverse);
    const float high = x[i + 8] * inverse - std::nearbyintf(x[i + 8] * inverse);
    lane[i] = low * low + high * high;
  }
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

// How many levels to spread [0, largest] over, the most of equals.
float best_levels(const float* x, float largest) {
  float best = kMostLevels;
  float least = std::numeric_limits<float>::infinity();
  for (int i = 0; i < kTries; ++i) {
    const auto levels = static_cast<float>(kMostLevels - i);
    const float error = squared_error(x, levels / largest) * (1.0f / (levels * levels));
    if (error < least) {
      least = error;
      best = levels;
    }
  }
  return best;
}

void quantize_half(const float* x, int64_t h, const QuantizedSlot& slot) {
  const float largest = largest_magnitude(x);
  const bool usable = largest > kTiny;
  const float levels = usable ? best_levels(x, largest) : 1.0f;
  const float scale = usable ? largest / levels : largest * 0.0f;  // keeps a NaN
  const float inverse = usable ? levels / largest : 0.0f;
  int8_t* codes = slot.codes + h * kHalfColumns;
  int pair[2] = {0, 0};
  for (int i = 0; i < kHalfColumns; ++i) {
    codes[i] = usable ? static_cast<int8_t>(std::lrintf(x[i] * inverse)) : int8_t{0};
    pair[i % 4 / 2] += codes[i];
  }
  slot.scales[h] = scale;
  slot.halves[h] = scale * static_cast<float>(pair[0] + pair[1]);
  slot.lanes[2 * h] = static_cast<int16_t>(-pair[0]);
  slot.lanes[2 * h + 1] = static_cast<int16_t>(-pair[1]);
}

int code_at(const Format& f, const uint8_t* cell, int row, int column) {
  const int g = column / kGroupColumns;
  const int v = column % kGroupColumns / kVectorColumns;
  const int byte = kVectorColumns * row + column % kVectorColumns;
  const uint8_t* at = cell + f.low_run(g) + v * kVectorBytes + byte;
  const int bits =
      f.scattered(g) ? at[0] >> 6 | at[kRunBytes] >> 6 << 2 | at[2 * kRunBytes] >> 6 << 4 : at[0];
  const int low = bits >> f.low_shift(g) & ((1 << f.low_bits) - 1);
  const int high = f.high_bits == 1 ? cell[f.high_at() + g * kVectorBytes + byte] >> v & 1 : 0;
  return low | high << f.low_bits;
}

int number_at(const Format& f, const uint8_t* cell, int row, int column) {
  const int code = code_at(f, cell, row, column);
  switch (f.kind) {
    case CodeKind::centered:
      return code - f.center;
    case CodeKind::bytes:
      return static_cast<int8_t>(code);
    case CodeKind::levels:
      return kIq4Levels[code];
  }
  return 0;
}

int integer_scale(const Format& f, const uint8_t* cell, int row, int s) {
  const uint8_t byte = cell[f.scales_at() + s * kStripeRows + row];
  return f.scale_kind == ScaleKind::integer_pairs ? byte & 15 : static_cast<int8_t>(byte);
}

int integer_offset(const Format& f, const uint8_t* cell, int row, int s) {
  if (f.scale_kind == ScaleKind::integer_pairs) return cell[f.scales_at() + s * kStripeRows + row] >> 4;
  return cell[f.offsets_at() + s * kStripeRows + row];
}

float half_at(const uint8_t* halves, int row) { return load_f16(halves + 2 * row); }

// Σ number · code over n columns.
int products(const Format& f, const uint8_t* cell, int row, int first, int n, const int8_t* codes) {
  int sum = 0;
  for (int c = first; c < first + n; ++c) sum += number_at(f, cell, row, c) * codes[c];
  return sum;
}

float add_integer_cell(const Format& f, const uint8_t* cell, int row, const QuantizedVector& x, float y) {
  float t = 0.0f;
  for (int h = 0; h < f.cell_columns / kHalfColumns; ++h) {
    const int scale = integer_scale(f, cell, row, h * kHalfColumns / f.scale_columns);
    const int sum = scale * products(f, cell, row, h * kHalfColumns, kHalfColumns, x.codes);
    t = std::fma(static_cast<float>(sum), x.scales[h], t);
  }
  y = std::fma(t, half_at(cell + f.super_at(), row), y);
  if (!f.has_offsets) return y;
  float u = 0.0f;
  const float* sums = f.scale_columns == kGroupColumns ? x.sums : x.halves;
  for (int s = 0; s < f.scales(); ++s) {
    u = std::fma(static_cast<float>(integer_offset(f, cell, row, s)), sums[s], u);
  }
  return std::fma(-u, half_at(cell + f.super_offset_at(), row), y);
}

float add_half_cell(const Format& f, const uint8_t* cell, int row, const QuantizedVector& x, float y) {
  for (int g = 0; g < f.groups(); ++g) {
    float t = 0.0f;
    for (int h = 2 * g; h < 2 * g + 2; ++h) {
      const int sum = products(f, cell, row, h * kHalfColumns, kHalfColumns, x.codes);
      t = std::fma(static_cast<float>(sum), x.scales[h], t);
    }
    y = std::fma(t, half_at(cell + f.scales_at() + g * f.scale_row(), row), y);
    if (f.has_offsets) y = std::fma(half_at(cell + f.offsets_at() + g * f.scale_row(), row), x.sums[g], y);
  }
  return y;
}

QuantizedVector from_column(const QuantizedVector& x, int64_t column) {
  const int64_t g = column / kGroupColumns;
  return {x.codes + column, x.scales + 2 * g, x.halves + 2 * g, x.sums + g, x.lanes + 4 * g};
}

template <class Tag>
void dot(const uint8_t* stripe, int64_t n_cells, const QuantizedVector* x, int tokens, float* out,
         const uint8_t*) {
  constexpr const Format& f = Tag::format;
  for (int t = 0; t < tokens; ++t) {
    for (int row = 0; row < kStripeRows; ++row) {
      float y = 0.0f;
      for (int64_t i = 0; i < n_cells; ++i) {
        const uint8_t* cell = stripe + i * f.cell_bytes();
        const QuantizedVector part = from_column(x[t], i * f.cell_columns);
        y = f.integer_scales() ? add_integer_cell(f, cell, row, part, y)
                               : add_half_cell(f, cell, row, part, y);
      }
      out[kStripeRows * t + row] = y;
    }
  }
}

}  // namespace

void quantize(const float* x, int64_t columns, int64_t first_group, const QuantizedSlot& slot) {
  for (int64_t i = 0; i < columns / kGroupColumns; ++i) {
    const int64_t g = first_group + i;
    quantize_half(x + i * kGroupColumns, 2 * g, slot);
    quantize_half(x + i * kGroupColumns + kHalfColumns, 2 * g + 1, slot);
    slot.sums[g] = slot.halves[2 * g] + slot.halves[2 * g + 1];
  }
}

void fill_dots(DotFn* table) {
  for_each_format([table](auto tag) {
    using Tag = decltype(tag);
    table[static_cast<int>(Tag::format.type)] = dot<Tag>;
  });
}

}  // namespace trimaran::generic
