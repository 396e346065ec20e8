#include "runtime/quantized_rows.h"

#include <algorithm>

#include "runtime/buffers.h"

namespace trimaran {
namespace {

constexpr int64_t kFewNumbers = 32 << 10;  // waking threads would take longer

void clear_from(const QuantizedSlot& slot, int64_t first, int64_t groups) {
  const int64_t n = groups - first;
  std::fill_n(slot.codes + first * kGroupColumns, n * kGroupColumns, int8_t{0});
  std::fill_n(slot.scales + 2 * first, 2 * n, 0.0f);
  std::fill_n(slot.sums + first, n, 0.0f);
  std::fill_n(slot.halves + 2 * first, 2 * n, 0.0f);
  std::fill_n(slot.lanes + 4 * first, 4 * n, int16_t{0});
}

}  // namespace

void QuantizedRows::resize(int64_t n, int64_t columns) {
  layout_ = ActivationLayout(columns);
  ensure_size(buffer_, offset(n));
  for (int64_t i = 0; i < n; ++i) clear_from(slot(i), columns / kGroupColumns, layout_.groups);
}

void QuantizedRows::set(ThreadPool& pool, const Primitives& primitives, const float* const* rows, int64_t n,
                        int64_t columns) {
  resize(n, columns);
  const auto quantize = [&](int64_t i, int) { primitives.quantize(rows[i], columns, 0, slot(i)); };
  if (n * columns > kFewNumbers) {
    pool.parallel_for(n, quantize);
  } else {
    for (int64_t i = 0; i < n; ++i) quantize(i, 0);
  }
}

}  // namespace trimaran
