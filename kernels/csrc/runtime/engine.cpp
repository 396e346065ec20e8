#include "runtime/engine.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "quant/half.h"
#include "runtime/buffers.h"
#include "runtime/padded_rows.h"
#include "runtime/route.h"
#include "runtime/row_tile.h"

namespace trimaran {
namespace {

struct Layer {
  RowMatrix gate;
  RowMatrix up;
  RowMatrix down;
  int first_expert;
  int n_experts;

  uint64_t expert_bytes() const {
    return (gate.row_bytes + up.row_bytes) * static_cast<uint64_t>(gate.rows) +
           down.row_bytes * static_cast<uint64_t>(down.rows);
  }
};

// Rows of one expert out of a matrix that stacks the experts' rows.
int64_t first_row(int expert, int64_t rows, int64_t tile) { return expert * rows + tile * kTileRows; }

int64_t tiles_of(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

int tile_rows(int64_t rows, int64_t tile) {
  return static_cast<int>(std::min<int64_t>(kTileRows, rows - tile * kTileRows));
}

float silu(float x) { return x / (1.0f + std::exp(-x)); }

void store(void* y, DType dtype, int64_t index, float value) {
  if (dtype == DType::f32) {
    static_cast<float*>(y)[index] = value;
  } else {
    static_cast<uint16_t*>(y)[index] = float_to_bf16(value);
  }
}

void check_dims(const EngineDims& dims) {
  const auto check = [](int value, const char* name) {
    if (value < 1) throw KernelError(std::string(name) + ": must be at least 1, is " + std::to_string(value));
  };
  check(dims.hidden, "hidden");
  check(dims.intermediate, "intermediate");
  check(dims.n_experts, "n_experts");
  check(dims.top_k, "top_k");
  check(dims.max_tokens, "max_tokens");
  if (static_cast<int64_t>(dims.max_tokens) * dims.top_k > INT32_MAX / 4) {
    throw KernelError("max_tokens: " + std::to_string(dims.max_tokens) + " is too large");
  }
}

}  // namespace

struct ExpertEngine::Impl {
  Impl(ThreadPool& pool, const Primitives& primitives, const EngineDims& dims)
      : pool(pool), primitives(primitives), dims(dims), parts(static_cast<size_t>(pool.size())) {}

  // One call's output, and the routing weights that it applies.
  struct Output {
    void* y;
    DType dtype;
    int n_tokens;
    const float* weights;
  };

  void gate_and_up(const Layer& layer);
  void down(const Layer& layer, const Output& output);
  void down_tile(const Layer& layer, const Output& output, int64_t tile, std::vector<float>& part);

  ThreadPool& pool;
  const Primitives& primitives;
  const EngineDims dims;
  std::map<int, Layer> layers;
  std::atomic<uint64_t> bytes_read{0};

  std::mutex callers;  // guards what follows: the buffers of the call in progress
  Route route;
  PaddedRows x;                           // by token
  std::vector<const float*> x_at;         // by position
  std::vector<float> hidden;              // [position, padded intermediate]: silu(gate) · up
  std::vector<const float*> hidden_at;    // by position
  std::vector<std::vector<float>> parts;  // per worker: [position, kTileRows] of one down tile
};

// hidden[position] = silu(gate · x) · (up · x); work items are (expert, tile of rows).
void ExpertEngine::Impl::gate_and_up(const Layer& layer) {
  const int64_t padded = round_up(dims.intermediate, kLanes);
  const int64_t tiles = tiles_of(dims.intermediate);
  const auto n = static_cast<size_t>(route.n_positions());
  ensure_size(hidden, n * static_cast<size_t>(padded));
  ensure_size(x_at, n);
  ensure_size(hidden_at, n);
  for (size_t i = 0; i < n; ++i) {
    float* row = hidden.data() + i * static_cast<size_t>(padded);
    std::fill(row + dims.intermediate, row + padded, 0.0f);
    hidden_at[i] = row;
    x_at[i] = x.rows()[route.token_at(static_cast<int>(i))];
  }
  const auto n_groups = static_cast<int64_t>(route.groups().size());
  pool.parallel_for(n_groups * tiles, [&](int64_t item, int) {
    const Route::Group& group = route.groups()[static_cast<size_t>(item / tiles)];
    const int64_t tile = item % tiles;
    const int64_t row = first_row(group.expert, dims.intermediate, tile);
    const int rows = tile_rows(dims.intermediate, tile);
    for (int first = group.begin; first < group.end; first += kTileTokens) {
      const int count = std::min(kTileTokens, group.end - first);
      float gate[kTileTokens * kTileRows];
      float up[kTileTokens * kTileRows];
      multiply_rows(primitives, layer.gate, row, rows, &x_at[static_cast<size_t>(first)], count, gate,
                    kTileRows);
      multiply_rows(primitives, layer.up, row, rows, &x_at[static_cast<size_t>(first)], count, up, kTileRows);
      for (int t = 0; t < count; ++t) {
        float* out = hidden.data() + (first + t) * padded + tile * kTileRows;
        for (int r = 0; r < rows; ++r) out[r] = silu(gate[t * kTileRows + r]) * up[t * kTileRows + r];
      }
    }
  });
}

void ExpertEngine::Impl::down(const Layer& layer, const Output& output) {
  for (std::vector<float>& part : parts) {
    ensure_size(part, static_cast<size_t>(route.n_positions()) * kTileRows);
  }
  pool.parallel_for(tiles_of(dims.hidden), [&](int64_t tile, int worker) {
    down_tile(layer, output, tile, parts[static_cast<size_t>(worker)]);
  });
}

// A work item owns some columns of y: all experts' products for them, then each token's weighted sum.
void ExpertEngine::Impl::down_tile(const Layer& layer, const Output& output, int64_t tile,
                                   std::vector<float>& part) {
  const int rows = tile_rows(dims.hidden, tile);
  for (const Route::Group& group : route.groups()) {
    multiply_rows(primitives, layer.down, first_row(group.expert, dims.hidden, tile), rows,
                  &hidden_at[static_cast<size_t>(group.begin)], group.end - group.begin,
                  &part[static_cast<size_t>(group.begin) * kTileRows], kTileRows);
  }
  for (int token = 0; token < output.n_tokens; ++token) {
    float sums[kTileRows] = {};
    for (int slot = token * dims.top_k; slot < (token + 1) * dims.top_k; ++slot) {
      const int position = route.position_of(slot);
      if (position < 0) continue;
      const float* values = &part[static_cast<size_t>(position) * kTileRows];
      for (int r = 0; r < rows; ++r) sums[r] += output.weights[slot] * values[r];
    }
    const int64_t column = static_cast<int64_t>(token) * dims.hidden + tile * kTileRows;
    for (int r = 0; r < rows; ++r) store(output.y, output.dtype, column + r, sums[r]);
  }
}

ExpertEngine::ExpertEngine(ThreadPool& pool, const Primitives& primitives, const EngineDims& dims) {
  check_dims(dims);
  impl_ = std::make_unique<Impl>(pool, primitives, dims);
}

ExpertEngine::~ExpertEngine() = default;

void ExpertEngine::add_layer(int layer, const LayerWeights& weights) {
  const EngineDims& dims = impl_->dims;
  if (weights.first_expert < 0 || weights.n_experts < 1 ||
      weights.first_expert > dims.n_experts - weights.n_experts) {
    throw KernelError("first_expert, n_experts: experts [" + std::to_string(weights.first_expert) + ", " +
                      std::to_string(weights.first_expert + static_cast<int64_t>(weights.n_experts)) +
                      ") are not within [0, " + std::to_string(dims.n_experts) + ")");
  }
  const int64_t up_rows = static_cast<int64_t>(weights.n_experts) * dims.intermediate;
  const int64_t down_rows = static_cast<int64_t>(weights.n_experts) * dims.hidden;
  RowMatrix gate = view_rows(weights.gate, up_rows, dims.hidden, "gate");
  RowMatrix up = view_rows(weights.up, up_rows, dims.hidden, "up");
  RowMatrix down = view_rows(weights.down, down_rows, dims.intermediate, "down");
  gate.rows = up.rows = dims.intermediate;
  down.rows = dims.hidden;
  const std::lock_guard<std::mutex> lock(impl_->callers);
  const Layer view{gate, up, down, weights.first_expert, weights.n_experts};
  if (!impl_->layers.emplace(layer, view).second) {
    throw KernelError("layer: " + std::to_string(layer) + " is there already");
  }
}

Status ExpertEngine::forward(int layer, int n_tokens, const void* x, const int32_t* ids, const float* weights,
                             void* y, DType dtype) noexcept try {
  Impl& impl = *impl_;
  const EngineDims& dims = impl.dims;
  const std::lock_guard<std::mutex> lock(impl.callers);
  const auto found = impl.layers.find(layer);
  if (found == impl.layers.end()) return Status::bad_layer;
  if (n_tokens < 0 || n_tokens > dims.max_tokens) return Status::bad_token_count;
  const Layer& view = found->second;
  const Status status =
      impl.route.set(ids, n_tokens, dims.top_k, dims.n_experts, view.first_expert, view.n_experts);
  if (status != Status::ok) return status;
  impl.x.set(impl.pool, x, dtype, n_tokens, dims.hidden);
  impl.gate_and_up(view);
  impl.down(view, {y, dtype, n_tokens, weights});
  impl.bytes_read += impl.route.groups().size() * view.expert_bytes();
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::internal;  // the scratch buffers grow with n_tokens
}

const EngineDims& ExpertEngine::dims() const { return impl_->dims; }

const char* ExpertEngine::isa() const { return impl_->primitives.name; }

bool ExpertEngine::has_layer(int layer) const {
  const std::lock_guard<std::mutex> lock(impl_->callers);
  return impl_->layers.count(layer) != 0;
}

uint64_t ExpertEngine::bytes_read() const { return impl_->bytes_read; }

}  // namespace trimaran
