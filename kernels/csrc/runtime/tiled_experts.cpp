#include "runtime/tiled_experts.h"

#include <algorithm>

#include "runtime/buffers.h"

namespace trimaran {

TiledExperts::TiledExperts(const Primitives& primitives, int n_workers, int terms)
    : tiles_(primitives.tiles),
      activate_(primitives.activate),
      terms_(terms),
      scratch_(static_cast<size_t>(n_workers)) {}

void TiledExperts::choose(const Route& route, int least_tokens) {
  slots_.clear();
  counts_.clear();
  tasks_.clear();
  for (const Route::Group& group : route.groups()) {
    const int count = group.end - group.begin;
    const bool chosen = count >= least_tokens;
    slots_.push_back(chosen ? static_cast<int>(counts_.size()) : -1);
    if (!chosen) continue;
    for (int first = 0; first < count; first += kBlockVectors) {
      const int slot = static_cast<int>(counts_.size());
      tasks_.push_back({slot, first, std::min(kBlockVectors, count - first), group.begin + first});
    }
    counts_.push_back(count);
  }
}

void TiledExperts::prepare(ThreadPool& pool, const Route& route, int least_tokens, const float* const* x,
                           int hidden, int intermediate) {
  choose(route, least_tokens);
  if (counts_.empty()) return;
  inputs_.resize(counts_, hidden, terms_);
  hiddens_.resize(counts_, intermediate, terms_);
  const int64_t steps = inputs_.steps();
  pool.parallel_for(static_cast<int64_t>(tasks_.size()) * steps, [&](int64_t item, int) {
    const Task& task = tasks_[static_cast<size_t>(item / steps)];
    const int64_t begin = item % steps * kStepColumns;
    const int64_t end = std::min<int64_t>(begin + kStepColumns, hidden);
    for (int i = 0; i < task.count; ++i) {
      const float* row = x[route.token_at(task.position + i)];
      for (int64_t column = begin; column < end; column += kGroupColumns) {
        round(row + column, column, inputs_, task.slot, task.row + i);
      }
    }
  });
}

void TiledExperts::round(const float* x, int64_t column, BlockedRows& rows, int slot, int row) const {
  const int group = static_cast<int>(column % kStepColumns / kGroupColumns);
  tiles_->round(x, group, terms_, rows.step(slot, row, column));
}

float* TiledExperts::scratch(int worker, int64_t floats) {
  std::vector<float>& buffer = scratch_[static_cast<size_t>(worker)];
  ensure_size(buffer, static_cast<size_t>(floats));
  return buffer.data();
}

void TiledExperts::gate_and_up(const Weights& gate, const Weights& up, int expert, size_t group,
                               int64_t first_tile, int worker) {
  const int slot = slots_[group];
  const int64_t tile_floats = static_cast<int64_t>(inputs_.blocks(slot)) * kBlockVectors * kTileRows;
  float* gates = scratch(worker, 2 * kTileStripes * tile_floats);
  float* ups = gates + kTileStripes * tile_floats;
  // Other threads take the items in between.
  const int64_t after = first_tile + static_cast<int64_t>(kTileStripes * scratch_.size());
  gate.multiply_blocks(*tiles_, expert, first_tile, inputs_, slot, gates, up.start(expert, first_tile));
  up.multiply_blocks(*tiles_, expert, first_tile, inputs_, slot, ups, gate.start(expert, after));
  for (int i = 0; i < counts_[static_cast<size_t>(slot)]; ++i) {
    float activated[kGroupColumns];
    for (int s = 0; s < kTileStripes; ++s) {
      const int64_t at = s * tile_floats + i * kTileRows;
      activate_(gates + at, ups + at, kTileRows, activated + s * kTileRows);
    }
    round(activated, first_tile * kTileRows, hiddens_, slot, i);
  }
}

void TiledExperts::down(const Weights& down, int expert, size_t group, int64_t first_tile, int worker,
                        float* out, int64_t pitch, const uint8_t* next) {
  const int slot = slots_[group];
  const int64_t tile_floats = static_cast<int64_t>(hiddens_.blocks(slot)) * kBlockVectors * kTileRows;
  float* sums = scratch(worker, kTileStripes * tile_floats);
  down.multiply_blocks(*tiles_, expert, first_tile, hiddens_, slot, sums, next);
  const int64_t used = static_cast<int64_t>(counts_[static_cast<size_t>(slot)]) * kTileRows;
  for (int i = 0; i < kTileStripes; ++i) std::copy_n(sums + i * tile_floats, used, out + i * pitch);
}

}  // namespace trimaran
