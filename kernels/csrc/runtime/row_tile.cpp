#include "runtime/row_tile.h"

#include <algorithm>
#include <string>

#include "runtime/status.h"

namespace trimaran {
namespace {

constexpr int kFewTokens = 4;

struct alignas(64) Scratch {
  float w[kTileRows * kRunColumns];
  float acc[kTileRows * kTileTokens * kLanes];
};

float sum_lanes(const float* v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

// Decodes columns [c, c + n) of the tile's rows and pads them to whole vectors; returns the padded width.
int64_t decode_run(DecodeFn decode, const RowMatrix& matrix, int64_t first_row, int rows, int64_t c,
                   int64_t n, float* w) {
  const size_t skipped = matrix.traits->row_bytes(c);
  const int64_t padded = round_up(n, kLanes);
  for (int r = 0; r < rows; ++r) {
    float* row = w + r * kRunColumns;
    decode(matrix.data + static_cast<size_t>(first_row + r) * matrix.row_bytes + skipped, n, row);
    std::fill(row + n, row + padded, 0.0f);
  }
  return padded;
}

void accumulate_decoded(const Primitives& primitives, const RowMatrix& matrix, int64_t first_row, int rows,
                        const float* const* x, int tokens, Scratch& scratch) {
  const DecodeFn decode = primitives.decoder(matrix.traits->type);
  for (int64_t c = 0; c < matrix.columns; c += kRunColumns) {
    const int64_t n = std::min(kRunColumns, matrix.columns - c);
    const int64_t padded = decode_run(decode, matrix, first_row, rows, c, n, scratch.w);
    const float* columns[kTileTokens];
    for (int t = 0; t < tokens; ++t) columns[t] = x[t] + c;
    primitives.accumulate({scratch.w, kRunColumns, rows, columns, tokens, padded}, scratch.acc);
  }
}

// Rows of float32 that need no padding can be read where they lie; it pays while no panel is used often.
bool read_in_place(const RowMatrix& matrix, int tokens) {
  return tokens <= kFewTokens && matrix.traits->type == GgmlType::F32 && matrix.columns % kLanes == 0 &&
         reinterpret_cast<uintptr_t>(matrix.data) % alignof(float) == 0;
}

}  // namespace

RowMatrix view_rows(const Matrix& matrix, int64_t rows, int64_t columns, const char* argument) {
  const std::string name = argument;
  const TypeTraits* traits = find_type(static_cast<int32_t>(matrix.type));
  if (traits == nullptr) {
    throw KernelError(name + ": GGUF type " + std::to_string(static_cast<int>(matrix.type)) +
                      " is not supported");
  }
  if (rows < 0 || columns < 1 || columns % traits->block_size != 0) {
    throw KernelError(name + ": " + std::to_string(columns) + " columns are no multiple of " + traits->name +
                      "'s block of " + std::to_string(traits->block_size));
  }
  const size_t row_bytes = traits->row_bytes(columns);
  if (static_cast<size_t>(rows) > matrix.size / row_bytes) {
    throw KernelError(name + ": " + std::to_string(matrix.size) + " bytes, but " + std::to_string(rows) +
                      " × " + std::to_string(columns) + " weights of " + traits->name + " need " +
                      std::to_string(static_cast<size_t>(rows) * row_bytes));
  }
  return {traits, matrix.data, rows, columns, row_bytes};
}

void multiply_rows(const Primitives& primitives, const RowMatrix& matrix, int64_t first_row, int rows,
                   const float* const* x, int tokens, float* out, int64_t ld) {
  Scratch scratch;
  for (int first = 0; first < tokens; first += kTileTokens) {
    const int count = std::min(kTileTokens, tokens - first);
    std::fill_n(scratch.acc, rows * count * kLanes, 0.0f);
    if (read_in_place(matrix, count)) {
      const auto* w = reinterpret_cast<const float*>(matrix.data) + first_row * matrix.columns;
      primitives.accumulate({w, matrix.columns, rows, x + first, count, matrix.columns}, scratch.acc);
    } else {
      accumulate_decoded(primitives, matrix, first_row, rows, x + first, count, scratch);
    }
    for (int t = 0; t < count; ++t) {
      for (int r = 0; r < rows; ++r) {
        out[(first + t) * ld + r] = sum_lanes(scratch.acc + (static_cast<int64_t>(r) * count + t) * kLanes);
      }
    }
  }
}

}  // namespace trimaran
