// The experts of a call that have enough tokens for matrix tiles.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/primitives.h"
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
  // primitives: have tiles if prepare() is called, and outlive this object. terms: of StepLayout.
  TiledExperts(const Primitives& primitives, int n_workers, int terms);

  // Chooses the route's groups with at least so many tokens and lays out their activations. x: by token.
  void prepare(ThreadPool& pool, const Route& route, int least_tokens, const float* const* x, int hidden,
               int intermediate);
  // Chooses none.
  void clear() { slots_.clear(); }

  bool has(size_t group) const { return group < slots_.size() && slots_[group] >= 0; }
  bool empty() const { return counts_.empty() || slots_.empty(); }

  // Rows [16 first_tile, 16 first_tile + 32) of silu(gate · x) · (up · x), kept for down().
  void gate_and_up(const Weights& gate, const Weights& up, int expert, size_t group, int64_t first_tile,
                   int worker);
  // out[i][16 vector + r] = row r of tile first_tile + i of down · hidden; i < 2, `pitch` floats apart. next:
  // as of TileProduct.
  void down(const Weights& down, int expert, size_t group, int64_t first_tile, int worker, float* out,
            int64_t pitch, const uint8_t* next);

 private:
  // Vectors of one block that come from successive positions.
  struct Task {
    int slot;
    int row;
    int count;
    int position;
  };

  void choose(const Route& route, int least_tokens);
  void round(const float* x, int64_t column, BlockedRows& rows, int slot, int row) const;
  float* scratch(int worker, int64_t floats);

  const TilePrimitives* tiles_;
  ActivateFn activate_;
  int terms_;
  std::vector<int> slots_;   // by group: its place among the chosen ones, or -1
  std::vector<int> counts_;  // by slot: vectors
  std::vector<Task> tasks_;
  BlockedRows inputs_;
  BlockedRows hiddens_;
  std::vector<std::vector<float>> scratch_;  // per worker
};

}  // namespace trimaran
