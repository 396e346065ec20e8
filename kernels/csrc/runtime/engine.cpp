#include "runtime/engine.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "quant/half.h"
#include "runtime/buffers.h"
#include "runtime/padded_rows.h"
#include "runtime/quantized_rows.h"
#include "runtime/route.h"
#include "runtime/tiled_experts.h"
#include "runtime/weights.h"

namespace trimaran {
namespace {

constexpr int kGroupTiles = 2;  // tiles of gate and up that make one group of quantised activations
static_assert(kGroupTiles * kTileRows == kGroupColumns);
constexpr int64_t kMostItemTiles = 8;                         // of gate and up in a work item
constexpr int64_t kItemProducts = kGroupTiles * kTileTokens;  // tiles × tokens whose results an item keeps

struct Layer {
  Weights gate;
  Weights up;
  Weights down;
  int first_expert;
  int n_experts;
  int least_tokens;  // of an expert that is computed by matrix tiles; 0: none is

  bool packed() const { return gate.packed() && up.packed() && down.packed(); }
  uint64_t expert_bytes() const { return gate.matrix_bytes() + up.matrix_bytes() + down.matrix_bytes(); }
};

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

// Views of a call's vectors in the order of positions.
struct Positions {
  std::vector<const float*> floats;
  std::vector<QuantizedVector> codes;

  void resize(int n) {
    ensure_size(floats, static_cast<size_t>(n));
    ensure_size(codes, static_cast<size_t>(n));
  }
  Vectors vectors() const { return {floats.data(), codes.data()}; }
};

}  // namespace

struct ExpertEngine::Impl {
  Impl(ThreadPool& pool, const Primitives& primitives, const EngineDims& dims, bool exact)
      : pool(pool),
        primitives(primitives),
        dims(dims),
        exact(exact),
        tiled(primitives, pool.size(), exact ? kMostTerms : 1),
        parts(static_cast<size_t>(pool.size())) {}

  // One call's output, and the routing weights that it applies.
  struct Output {
    void* y;
    DType dtype;
    int n_tokens;
    const float* weights;
  };

  int least_tokens(const Layer& layer) const;
  // nullptr if it is not there; layers stay where they are.
  const Layer* find(int layer) const {
    const std::lock_guard<std::mutex> lock(layers_mutex);
    const auto found = layers.find(layer);
    return found == layers.end() ? nullptr : &found->second;
  }
  void prepare(const Layer& layer, const void* x, DType dtype, int n_tokens);
  int64_t mean_tokens() const;
  int64_t gate_tiles_of_item(const Layer& layer) const;
  void gate_and_up(const Layer& layer);
  void gate_and_up_item(const Layer& layer, const Route::Group& group, int64_t first_tile, int64_t run);
  void keep_hidden(const Layer& layer, const float* activated, int position, int64_t column, int64_t width);
  void down(const Layer& layer, const Output& output);
  void down_item(const Layer& layer, const Output& output, int64_t first_tile, int tiles, int worker);
  void add_up(const Output& output, const float* part, int64_t tile, int rows) const;

  ThreadPool& pool;
  const Primitives& primitives;
  const EngineDims dims;
  const bool exact;
  // Apart from `callers`, which is held as long as a call computes: nobody who only asks waits for that.
  mutable std::mutex layers_mutex;
  std::map<int, Layer> layers;
  std::atomic<uint64_t> bytes_read{0};

  std::mutex callers;  // guards what follows: the buffers of the call in progress
  Route route;
  PaddedRows x;                // by token
  QuantizedRows x_codes;       // by token, if gate or up is packed
  Positions inputs;            // by position: what gate and up read
  std::vector<float> hidden;   // [position, padded intermediate]: silu(gate) · up, if down is not packed
  QuantizedRows hidden_codes;  // by position, if it is
  Positions hiddens;           // by position: what down reads
  TiledExperts tiled;          // the experts that need none of the above but x
  std::vector<std::vector<float>> parts;  // per worker: [tile of an item, position, kTileRows] of down
};

// From how many tokens on tiles take less time than dot products for an expert's three matrices together.
int ExpertEngine::Impl::least_tokens(const Layer& layer) const {
  if (!layer.packed() || primitives.tiles == nullptr) return 0;
  if (exact) return 1;
  const int* least = primitives.tiles->least_tokens;
  int sum = 0;
  for (const Weights* weights : {&layer.gate, &layer.up, &layer.down}) {
    sum += least[static_cast<int>(weights->type())];
  }
  return (sum + 2) / 3;
}

// Quantises each token once, however many experts it meets, and lays out what the two loops read and write.
void ExpertEngine::Impl::prepare(const Layer& layer, const void* data, DType dtype, int n_tokens) {
  x.set(pool, data, dtype, n_tokens, dims.hidden);
  const bool codes = layer.gate.packed() || layer.up.packed();
  if (codes) x_codes.set(pool, primitives, x.rows(), n_tokens, dims.hidden);
  if (layer.least_tokens > 0) {
    tiled.prepare(pool, route, layer.least_tokens, x.rows(), dims.hidden, dims.intermediate);
  } else {
    tiled.clear();
  }
  const int n = route.n_positions();
  const int64_t padded = round_up(dims.intermediate, kLanes);
  if (layer.down.packed()) {
    hidden_codes.resize(n, dims.intermediate);
  } else {
    ensure_size(hidden, static_cast<size_t>(n * padded));
  }
  inputs.resize(n);
  hiddens.resize(n);
  for (int i = 0; i < n; ++i) {
    const int token = route.token_at(i);
    inputs.floats[static_cast<size_t>(i)] = x.rows()[token];
    if (codes) inputs.codes[static_cast<size_t>(i)] = x_codes.vector(token);
    if (layer.down.packed()) {
      hiddens.codes[static_cast<size_t>(i)] = hidden_codes.vector(i);
    } else {
      float* row = hidden.data() + i * padded;
      std::fill(row + dims.intermediate, row + padded, 0.0f);
      hiddens.floats[static_cast<size_t>(i)] = row;
    }
  }
}

// Of an expert that has any, rounded up.
int64_t ExpertEngine::Impl::mean_tokens() const {
  const auto n_groups = std::max<int64_t>(1, static_cast<int64_t>(route.groups().size()));
  return (route.n_positions() + n_groups - 1) / n_groups;
}

// Whole groups, which threads write each by itself.
int64_t ExpertEngine::Impl::gate_tiles_of_item(const Layer& layer) const {
  if (!tiled.empty()) return kGroupTiles;
  const auto n_groups = static_cast<int64_t>(route.groups().size());
  const int64_t run = layer.gate.run_of_tiles(pool.size(), mean_tokens(), n_groups);
  return std::clamp<int64_t>(run, kGroupTiles, kMostItemTiles) / kGroupTiles * kGroupTiles;
}

// hidden[position] = silu(gate · x) · (up · x); work items are (expert, some tiles of rows).
void ExpertEngine::Impl::gate_and_up(const Layer& layer) {
  const int64_t run = gate_tiles_of_item(layer);
  const int64_t items = (layer.gate.tiles() + run - 1) / run;
  const auto n_groups = static_cast<int64_t>(route.groups().size());
  pool.parallel_for(n_groups * items, [&](int64_t item, int worker) {
    const auto index = static_cast<size_t>(item / items);
    const Route::Group& group = route.groups()[index];
    const int64_t first_tile = item % items * run;
    if (tiled.has(index)) {
      tiled.gate_and_up(layer.gate, layer.up, group.expert, index, first_tile, worker);
    } else {
      gate_and_up_item(layer, group, first_tile, run);
    }
  });
}

void ExpertEngine::Impl::gate_and_up_item(const Layer& layer, const Route::Group& group, int64_t first_tile,
                                          int64_t run) {
  const int64_t column = first_tile * kTileRows;
  const auto width = std::min<int64_t>(run * kTileRows, dims.intermediate - column);
  const int64_t tiles = (width + kTileRows - 1) / kTileRows, end = first_tile + tiles;
  const auto step = static_cast<int>(kItemProducts / run);
  alignas(64) float gate[kItemProducts * kTileRows];  // [tile, token, row]
  alignas(64) float up[kItemProducts * kTileRows];
  for (int first = group.begin; first < group.end; first += step) {
    const int count = std::min(step, group.end - first);
    const Vectors vectors = inputs.vectors().from(first);
    const int64_t pitch = static_cast<int64_t>(count) * kTileRows;
    for (int64_t tile = first_tile; tile < end; ++tile) {
      layer.gate.multiply(primitives, group.expert, tile, vectors, count, gate + (tile - first_tile) * pitch,
                          tile + 1 < end ? nullptr : layer.up.start(group.expert, first_tile));
    }
    // Other threads take the items in between.
    const uint8_t* after = layer.gate.start(group.expert, first_tile + run * pool.size());
    for (int64_t tile = first_tile; tile < end; ++tile) {
      layer.up.multiply(primitives, group.expert, tile, vectors, count, up + (tile - first_tile) * pitch,
                        tile + 1 < end ? nullptr : after);
    }
    for (int t = 0; t < count; ++t) {
      float activated[kMostItemTiles * kTileRows];
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t at = i * pitch + t * kTileRows;
        const int64_t rows = std::min<int64_t>(kTileRows, width - i * kTileRows);
        primitives.activate(gate + at, up + at, rows, activated + i * kTileRows);
      }
      keep_hidden(layer, activated, first + t, column, width);
    }
  }
}

// In the form that down reads.
void ExpertEngine::Impl::keep_hidden(const Layer& layer, const float* activated, int position, int64_t column,
                                     int64_t width) {
  if (layer.down.packed()) {
    primitives.quantize(activated, width, column / kGroupColumns, hidden_codes.slot(position));
  } else {
    const int64_t padded = round_up(dims.intermediate, kLanes);
    std::copy_n(activated, width, hidden.data() + position * padded + column);
  }
}

void ExpertEngine::Impl::down(const Layer& layer, const Output& output) {
  const int width =
      tiled.empty() ? static_cast<int>(layer.down.run_of_tiles(pool.size(), mean_tokens())) : kGroupTiles;
  for (std::vector<float>& part : parts) {
    ensure_size(part, static_cast<size_t>(width) * static_cast<size_t>(route.n_positions()) * kTileRows);
  }
  const int64_t tiles = layer.down.tiles();
  pool.parallel_for((tiles + width - 1) / width, [&](int64_t item, int worker) {
    const int64_t first = item * width;
    down_item(layer, output, first, static_cast<int>(std::min<int64_t>(width, tiles - first)), worker);
  });
}

// A work item owns some columns of y: all experts' products for them, then each token's weighted sum.
void ExpertEngine::Impl::down_item(const Layer& layer, const Output& output, int64_t first_tile, int tiles,
                                   int worker) {
  float* part = parts[static_cast<size_t>(worker)].data();
  const int64_t pitch = static_cast<int64_t>(route.n_positions()) * kTileRows;
  for (size_t i = 0; i < route.groups().size(); ++i) {
    const Route::Group& group = route.groups()[i];
    float* out = part + static_cast<int64_t>(group.begin) * kTileRows;
    const bool last = i + 1 == route.groups().size();
    const Route::Group& next = route.groups()[last ? 0 : i + 1];
    const int64_t next_tile = first_tile + (last ? int64_t{tiles} * pool.size() : 0);
    const uint8_t* after = layer.down.start(next.expert, next_tile);
    if (tiled.has(i)) {
      tiled.down(layer.down, group.expert, i, first_tile, worker, out, pitch, after);
      continue;
    }
    const Vectors vectors = hiddens.vectors().from(group.begin);
    for (int t = 0; t < tiles; ++t) {
      layer.down.multiply(primitives, group.expert, first_tile + t, vectors, group.end - group.begin,
                          out + t * pitch, t + 1 < tiles ? nullptr : after);
    }
  }
  for (int t = 0; t < tiles; ++t) {
    add_up(output, part + t * pitch, first_tile + t, layer.down.tile_rows(first_tile + t));
  }
}

void ExpertEngine::Impl::add_up(const Output& output, const float* part, int64_t tile, int rows) const {
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

ExpertEngine::ExpertEngine(ThreadPool& pool, const Primitives& primitives, const EngineDims& dims,
                           bool exact) {
  check_dims(dims);
  impl_ = std::make_unique<Impl>(pool, primitives, dims, exact);
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
  Layer view{Weights(weights.gate, weights.n_experts, dims.intermediate, dims.hidden, "gate"),
             Weights(weights.up, weights.n_experts, dims.intermediate, dims.hidden, "up"),
             Weights(weights.down, weights.n_experts, dims.hidden, dims.intermediate, "down"),
             weights.first_expert,
             weights.n_experts,
             0};
  view.least_tokens = impl_->least_tokens(view);
  const bool any_packed = view.gate.packed() || view.up.packed() || view.down.packed();
  if (impl_->exact && any_packed && view.least_tokens == 0) {
    throw KernelError(
        "exact: packed weights are multiplied exactly by matrix tiles only, which " +
        std::string(impl_->primitives.tiles == nullptr ? isa() : "a layer that is packed in part") +
        " does not have; give the file's own rows");
  }
  const std::lock_guard<std::mutex> lock(impl_->layers_mutex);
  if (!impl_->layers.emplace(layer, view).second) {
    throw KernelError("layer: " + std::to_string(layer) + " is there already");
  }
}

Status ExpertEngine::forward(int layer, int n_tokens, const void* x, const int32_t* ids, const float* weights,
                             void* y, DType dtype) noexcept try {
  Impl& impl = *impl_;
  const EngineDims& dims = impl.dims;
  const std::lock_guard<std::mutex> lock(impl.callers);
  const Layer* found = impl.find(layer);
  if (found == nullptr) return Status::bad_layer;
  if (n_tokens < 0 || n_tokens > dims.max_tokens) return Status::bad_token_count;
  const Layer& view = *found;
  const Status status =
      impl.route.set(ids, n_tokens, dims.top_k, dims.n_experts, view.first_expert, view.n_experts);
  if (status != Status::ok) return status;
  impl.prepare(view, x, dtype, n_tokens);
  impl.gate_and_up(view);
  impl.down(view, {y, dtype, n_tokens, weights});
  impl.bytes_read += impl.route.groups().size() * view.expert_bytes();
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::internal;  // the scratch buffers grow with n_tokens
}

void ExpertEngine::rest() noexcept { impl_->pool.rest(); }

const EngineDims& ExpertEngine::dims() const { return impl_->dims; }

const char* ExpertEngine::isa() const { return impl_->primitives.name; }

bool ExpertEngine::has_layer(int layer) const { return impl_->find(layer) != nullptr; }

uint64_t ExpertEngine::bytes_read() const { return impl_->bytes_read; }

}  // namespace trimaran
