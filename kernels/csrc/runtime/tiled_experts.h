// The experts of a call that have enough tokens for matrix tiles.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/tiles.h"
#include "runtime/blocked_rows.h"
#include "runtime/route.h"
#include "runtime/thread_pool.h"
#include "runtime/weights.h"

namespace trimaran {

// Only for experts whose three matrices are packed: then hidden and intermediate are multiples of 32, and
// rows come in pairs of tiles. Groups are named by their index in Route::groups().
class TiledExperts {
 public:
  // tiles: nullptr if there are none; then no group is chosen. It must outlive this object.
  TiledExperts(const TilePrimitives* tiles, int n_workers);

  // Chooses the route's groups with enough tokens and lays out their activations. x: by token.
  void prepare(ThreadPool& pool, const Route& route, const float* const* x, int hidden, int intermediate);
  // Chooses none.
  void clear() { slots_.clear(); }

  bool has(size_t group) const { return group < slots_.size() && slots_[group] >= 0; }
  bool empty() const { return counts_.empty() || slots_.empty(); }

  // Rows [16 first_tile, 16 first_tile + 32) of silu(gate · x) · (up · x), kept for down().
  void gate_and_up(const Weights& gate, const Weights& up, int expert, size_t group, int64_t first_tile,
                   int worker);
  // out[i][16 vector + r] = row r of tile first_tile + i of down · hidden; i < 2, `pitch` floats apart.
  void down(const Weights& down, int expert, size_t group, int64_t first_tile, int worker, float* out,
            int64_t pitch);

 private:
  float* scratch(int worker, int64_t floats);

  const TilePrimitives* tiles_;
  std::vector<int> slots_;   // by group: its place among the chosen ones, or -1
  std::vector<int> counts_;  // by slot: vectors
  BlockedRows inputs_;
  BlockedRows hiddens_;
  std::vector<std::vector<float>> scratch_;  // per worker
};

}  // namespace trimaran
