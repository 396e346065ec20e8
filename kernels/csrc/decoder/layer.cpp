#include "decoder/layer.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "attention/norm.h"
#include "runtime/buffers.h"
#include "runtime/status.h"

namespace trimaran {
namespace {

constexpr int64_t kValuesOfItem = 16 << 10;  // of a sum: 64 KiB, more than handing an item out costs

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void require(bool condition, const char* what) {
  if (!condition) throw KernelError(what);
}

// x += y.
void add(ThreadPool& pool, float* x, const float* y, int64_t n) {
  pool.parallel_for((n + kValuesOfItem - 1) / kValuesOfItem, [&](int64_t item, int) {
    const int64_t last = std::min(n, (item + 1) * kValuesOfItem);
    for (int64_t i = item * kValuesOfItem; i < last; ++i) x[i] += y[i];
  });
}

}  // namespace

DecoderLayer::DecoderLayer(ThreadPool& pool, DecoderParts parts) : pool_(pool), parts_(std::move(parts)) {
  const auto width = static_cast<size_t>(hidden());
  require(parts_.input_norm.size() == width, "input_norm: is not as long as the hidden size");
  require(parts_.post_norm.size() == width, "post_norm: is not as long as the hidden size");
  require(parts_.gate == nullptr || parts_.gate->hidden() == hidden(), "gate: has another hidden size");
  require(parts_.gate != nullptr || parts_.always != nullptr, "gate, always: a layer needs one of them");
  if (parts_.always != nullptr) {
    require(parts_.always->dims().hidden == hidden(), "always: has another hidden size");
    require(parts_.always->dims().top_k == 1 && parts_.always->has_layer(0),
            "always: must be an engine of one expert, as layer 0");
  }
}

int32_t DecoderLayer::run(float* x, const AttentionInput& input, const CacheLayer& cache,
                          hop::CallGate* routed, LayerScratch& scratch, LayerTimes& times) {
  const int64_t n = input.n, values = n * hidden();
  scratch.resize(n, hidden());
  times.attention = now();
  float *normed = scratch.normed.data(), *delta = scratch.delta.data();
  rms_norm(pool_, x, parts_.input_norm.data(), parts_.eps, n, hidden(), normed);
  parts_.attention->run(normed, input, cache, delta);
  add(pool_, x, delta, values);
  rms_norm(pool_, x, parts_.post_norm.data(), parts_.eps, n, hidden(), normed);
  times.gate = times.experts = times.always = now();
  if (is_routed()) {
    const int32_t status = compute_routed(routed, n, scratch, times);
    if (status != 0) return status;
  }
  times.always = now();
  if (parts_.always != nullptr) {
    float* out = is_routed() ? scratch.more.data() : delta;
    const int32_t status = compute_always(n, normed, out, scratch);
    if (status != 0) return status;
    if (is_routed()) add(pool_, delta, out, values);
  }
  add(pool_, x, delta, values);
  times.end = now();
  return 0;
}

// Into scratch.delta.
int32_t DecoderLayer::compute_routed(hop::CallGate* routed, int64_t n, LayerScratch& scratch,
                                     LayerTimes& times) const {
  const auto routes = static_cast<size_t>(n) * static_cast<size_t>(parts_.gate->spec().top_k);
  ensure_size(scratch.ids, routes);
  ensure_size(scratch.weights, routes);
  parts_.gate->route(scratch.normed.data(), n, scratch.ids.data(), scratch.weights.data());
  times.experts = now();
  const auto tokens = static_cast<uint32_t>(n);
  return routed->run({parts_.index, tokens, scratch.normed.data(), scratch.ids.data(), scratch.weights.data(),
                      scratch.delta.data(), DType::f32},
                     tokens);
}

// In pieces of what the engine takes at once.
int32_t DecoderLayer::compute_always(int64_t n, const float* x, float* y, LayerScratch& scratch) const {
  const int64_t step = parts_.always->dims().max_tokens;
  scratch.zeros.resize(static_cast<size_t>(std::min(n, step)), 0);
  scratch.ones.resize(scratch.zeros.size(), 1.0f);
  for (int64_t first = 0; first < n; first += step) {
    const auto count = static_cast<int>(std::min(step, n - first));
    const Status status = parts_.always->forward(0, count, x + first * hidden(), scratch.zeros.data(),
                                                 scratch.ones.data(), y + first * hidden(), DType::f32);
    if (status != Status::ok) return static_cast<int32_t>(status);
  }
  return 0;
}

void LayerScratch::resize(int64_t n, int64_t width) {
  const auto values = static_cast<size_t>(n * width);
  for (std::vector<float>* buffer : {&normed, &delta, &more}) ensure_size(*buffer, values);
}

}  // namespace trimaran
