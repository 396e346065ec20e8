#include "runtime/blocked_rows.h"

#include <algorithm>

#include "runtime/buffers.h"
#include "runtime/row_tile.h"

namespace trimaran {

void BlockedRows::clear(int64_t block, int64_t step, int first_row) {
  for (int tile = 0; tile < layout_.tiles(); ++tile) {
    const size_t first = index(block, step) + static_cast<size_t>(tile * kBlockVectors + first_row);
    std::fill_n(&lines_[first], kBlockVectors - first_row, Line{});
  }
}

void BlockedRows::resize(const std::vector<int>& counts, int64_t columns, int terms) {
  layout_ = {terms};
  steps_ = round_up(columns, kStepColumns) / kStepColumns;
  first_blocks_.assign(1, 0);
  for (const int count : counts) {
    first_blocks_.push_back(first_blocks_.back() + round_up(count, kBlockVectors) / kBlockVectors);
  }
  ensure_size(lines_, index(first_blocks_.back(), 0) + 1);
  const int64_t whole = columns / kStepColumns;
  for (size_t g = 0; g < counts.size(); ++g) {
    int left = counts[g];
    for (int64_t block = first_blocks_[g]; block < first_blocks_[g + 1]; ++block, left -= kBlockVectors) {
      for (int64_t step = 0; step < steps_; ++step) {
        const int used = step < whole ? std::min(left, kBlockVectors) : 0;
        if (used < kBlockVectors) clear(block, step, used);
      }
    }
  }
}

}  // namespace trimaran
