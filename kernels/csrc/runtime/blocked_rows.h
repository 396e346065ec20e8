// Activations as matrix tiles read them (isa/tiles.h): groups of vectors, each padded to whole blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/tiles.h"

namespace trimaran {

class BlockedRows {
 public:
  // Room for counts[g] vectors in group g. What fills up blocks and cells is zero, the rest is whatever was
  // there. columns: a multiple of 32.
  void resize(const std::vector<int>& counts, int64_t columns);

  // Where columns [column, column + 32) of a vector lie.
  uint8_t* line(int group, int row, int64_t column) {
    return lines_[index(first_block(group) + row / kBlockVectors, row % kBlockVectors, column)].bytes;
  }
  const uint8_t* group(int group) const { return lines_[index(first_block(group), 0, 0)].bytes; }
  int blocks(int group) const { return static_cast<int>(first_block(group + 1) - first_block(group)); }
  int64_t block_bytes() const { return tiles_ * kTileBytes; }

 private:
  struct alignas(64) Line {
    uint8_t bytes[kLineBytes];
  };

  int64_t first_block(int group) const { return first_blocks_[static_cast<size_t>(group)]; }
  size_t index(int64_t block, int row, int64_t column) const {
    return static_cast<size_t>((block * tiles_ + column / kGroupColumns) * kBlockVectors + row);
  }
  void clear_padding(int64_t block, int rows, int64_t tiles);

  int64_t tiles_ = 0;                  // of a block
  std::vector<int64_t> first_blocks_;  // of each group, and the end
  std::vector<Line> lines_;
};

}  // namespace trimaran
