#include "decoder/decoder.h"

#include <algorithm>
#include <utility>

#include "runtime/status.h"

namespace trimaran {

Decoder::Decoder(std::vector<DecoderLayer*> layers) : layers_(std::move(layers)) {
  if (layers_.empty()) throw KernelError("layers: need at least one");
  const auto is_missing = [](const DecoderLayer* layer) { return layer == nullptr; };
  if (std::any_of(layers_.begin(), layers_.end(), is_missing)) throw KernelError("layers: one is missing");
  for (const DecoderLayer* layer : layers_) {
    if (layer->hidden() != hidden()) throw KernelError("layers: their hidden sizes differ");
  }
}

bool Decoder::is_routed() const {
  return std::any_of(layers_.begin(), layers_.end(), [](const DecoderLayer* l) { return l->is_routed(); });
}

Decoder::Result Decoder::run(float* x, const AttentionInput& input, const std::vector<CacheLayer>& caches,
                             hop::CallGate* routed, LayerTimes* times, const int32_t* stop) {
  const std::lock_guard<std::mutex> lock(callers_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (__atomic_load_n(stop, __ATOMIC_RELAXED) != 0) return {static_cast<int64_t>(i), 0};
    const int32_t status = layers_[i]->run(x, input, caches[i], routed, scratch_, times[i]);
    if (status != 0) return {static_cast<int64_t>(i), status};
  }
  return {static_cast<int64_t>(layers_.size()), 0};
}

}  // namespace trimaran
