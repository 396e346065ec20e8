// Activations as matrix tiles read them (isa/tiles.h): groups of vectors, each padded to whole blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/tiles.h"

namespace trimaran {

class BlockedRows {
 public:
  // Room for counts[g] vectors in group g. What fills up blocks and the last step is zero, the rest is
  // whatever was there. columns: a multiple of 32; terms: of StepLayout.
  void resize(const std::vector<int>& counts, int64_t columns, int terms);

  // The line of a vector in the first tile of the step that `column` lies in.
  uint8_t* step(int group, int row, int64_t column) {
    const int64_t block = first_block(group) + row / kBlockVectors;
    return lines_[index(block, column / kStepColumns) + static_cast<size_t>(row % kBlockVectors)].bytes;
  }
  const uint8_t* group(int group) const { return lines_[index(first_block(group), 0)].bytes; }
  int blocks(int group) const { return static_cast<int>(first_block(group + 1) - first_block(group)); }
  int64_t block_bytes() const { return steps_ * layout_.bytes(); }
  int64_t steps() const { return steps_; }
  int terms() const { return layout_.terms; }

 private:
  struct alignas(64) Line {
    uint8_t bytes[kLineBytes];
  };

  int64_t first_block(int group) const { return first_blocks_[static_cast<size_t>(group)]; }
  size_t index(int64_t block, int64_t step) const {
    return static_cast<size_t>((block * steps_ + step) * layout_.tiles() * kBlockVectors);
  }
  // Lines [first_row, 16) of a step.
  void clear(int64_t block, int64_t step, int first_row);

  StepLayout layout_{1};
  int64_t steps_ = 0;                  // of a block
  std::vector<int64_t> first_blocks_;  // of each group, and the end
  std::vector<Line> lines_;
};

}  // namespace trimaran
