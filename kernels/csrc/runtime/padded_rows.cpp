#include "runtime/padded_rows.h"

#include <algorithm>

#include "quant/half.h"
#include "runtime/buffers.h"
#include "runtime/row_tile.h"

namespace trimaran {
namespace {

void convert_row(const void* data, DType dtype, int64_t first, int64_t columns, float* dst) {
  if (dtype == DType::f32) {
    const float* src = static_cast<const float*>(data) + first;
    std::copy(src, src + columns, dst);
  } else {
    const uint16_t* src = static_cast<const uint16_t*>(data) + first;
    std::transform(src, src + columns, dst, bf16_to_float);
  }
}

}  // namespace

void PaddedRows::set(ThreadPool& pool, const void* data, DType dtype, int64_t n, int64_t columns) {
  const int64_t padded = round_up(columns, kLanes);
  ensure_size(rows_, static_cast<size_t>(n));
  if (dtype == DType::f32 && padded == columns) {
    for (int64_t i = 0; i < n; ++i)
      rows_[static_cast<size_t>(i)] = static_cast<const float*>(data) + i * columns;
    return;
  }
  ensure_size(buffer_, static_cast<size_t>(n * padded));
  pool.parallel_for(n, [&](int64_t i, int) {
    float* row = buffer_.data() + i * padded;
    convert_row(data, dtype, i * columns, columns, row);
    std::fill(row + columns, row + padded, 0.0f);
    rows_[static_cast<size_t>(i)] = row;
  });
}

}  // namespace trimaran
