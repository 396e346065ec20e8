#include "runtime/tiled_experts.h"

#include <algorithm>

#include "runtime/buffers.h"
#include "runtime/silu.h"

namespace trimaran {

TiledExperts::TiledExperts(const TilePrimitives* tiles, int n_workers)
    : tiles_(tiles), scratch_(static_cast<size_t>(n_workers)) {}

void TiledExperts::prepare(ThreadPool& pool, const Route& route, const float* const* x, int hidden,
                           int intermediate) {
  slots_.clear();
  counts_.clear();
  if (tiles_ == nullptr) return;
  std::vector<int> begins;
  for (const Route::Group& group : route.groups()) {
    const bool chosen = group.end - group.begin >= tiles_->least_tokens;
    slots_.push_back(chosen ? static_cast<int>(counts_.size()) : -1);
    if (!chosen) continue;
    counts_.push_back(group.end - group.begin);
    begins.push_back(group.begin);
  }
  if (counts_.empty()) return;
  inputs_.resize(counts_, hidden);
  hiddens_.resize(counts_, intermediate);
  pool.parallel_for(static_cast<int64_t>(hidden) / kGroupColumns, [&](int64_t g, int) {
    const int64_t column = g * kGroupColumns;
    for (size_t slot = 0; slot < counts_.size(); ++slot) {
      for (int i = 0; i < counts_[slot]; ++i) {
        const float* row = x[route.token_at(begins[slot] + i)];
        tiles_->round(row + column, inputs_.line(static_cast<int>(slot), i, column));
      }
    }
  });
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
  gate.multiply_blocks(*tiles_, expert, first_tile, inputs_, slot, gates);
  up.multiply_blocks(*tiles_, expert, first_tile, inputs_, slot, ups);
  for (int i = 0; i < counts_[static_cast<size_t>(slot)]; ++i) {
    float activated[kGroupColumns];
    for (int c = 0; c < kGroupColumns; ++c) {
      const int64_t at = c / kTileRows * tile_floats + i * kTileRows + c % kTileRows;
      activated[c] = silu(gates[at]) * ups[at];
    }
    tiles_->round(activated, hiddens_.line(slot, i, first_tile * kTileRows));
  }
}

void TiledExperts::down(const Weights& down, int expert, size_t group, int64_t first_tile, int worker,
                        float* out, int64_t pitch) {
  const int slot = slots_[group];
  const int64_t tile_floats = static_cast<int64_t>(hiddens_.blocks(slot)) * kBlockVectors * kTileRows;
  float* sums = scratch(worker, kTileStripes * tile_floats);
  down.multiply_blocks(*tiles_, expert, first_tile, hiddens_, slot, sums);
  const int64_t used = static_cast<int64_t>(counts_[static_cast<size_t>(slot)]) * kTileRows;
  for (int i = 0; i < kTileStripes; ++i) std::copy_n(sums + i * tile_floats, used, out + i * pitch);
}

}  // namespace trimaran
