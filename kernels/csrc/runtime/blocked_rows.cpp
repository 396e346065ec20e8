#include "runtime/blocked_rows.h"

#include <algorithm>

#include "runtime/buffers.h"
#include "runtime/row_tile.h"

namespace trimaran {
namespace {

constexpr int64_t kPaddedColumns = 256;  // the widest cell

}  // namespace

void BlockedRows::clear_padding(int64_t block, int rows, int64_t tiles) {
  for (int64_t tile = 0; tile < tiles_; ++tile) {
    const int first = tile < tiles ? rows : 0;
    std::fill_n(&lines_[index(block, first, tile * kGroupColumns)], kBlockVectors - first, Line{});
  }
}

void BlockedRows::resize(const std::vector<int>& counts, int64_t columns) {
  tiles_ = round_up(columns, kPaddedColumns) / kGroupColumns;
  first_blocks_.assign(1, 0);
  for (const int count : counts) {
    first_blocks_.push_back(first_blocks_.back() + round_up(count, kBlockVectors) / kBlockVectors);
  }
  ensure_size(lines_, static_cast<size_t>(first_blocks_.back() * tiles_ * kBlockVectors) + 1);
  for (size_t g = 0; g < counts.size(); ++g) {
    int left = counts[g];
    for (int64_t block = first_blocks_[g]; block < first_blocks_[g + 1]; ++block, left -= kBlockVectors) {
      clear_padding(block, std::min(left, kBlockVectors), columns / kGroupColumns);
    }
  }
}

}  // namespace trimaran
