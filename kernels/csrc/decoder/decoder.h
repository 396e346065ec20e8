// All layers of a model, one after another in one call: between them nothing but kernels runs.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "decoder/layer.h"

namespace trimaran {

class Decoder {
 public:
  // The layers must outlive it. Throws KernelError if there are none, if one is null, or if their hidden
  // sizes differ.
  explicit Decoder(std::vector<DecoderLayer*> layers);

  const std::vector<DecoderLayer*>& layers() const { return layers_; }
  int64_t hidden() const { return layers_.front()->hidden(); }
  // Whether any layer has routed experts.
  bool is_routed() const;

  // x: [n, hidden], in and out; caches and times: one for each layer; routed: as of DecoderLayer::run.
  // Another thread may set *stop, which ends the call before the next layer; x is of no use then. Returns the
  // number of layers that were computed, and the status of the last. Any thread may call, one after another.
  struct Result {
    int64_t layers;
    int32_t status;
  };
  Result run(float* x, const AttentionInput& input, const std::vector<CacheLayer>& caches,
             hop::CallGate* routed, LayerTimes* times, const int32_t* stop);

 private:
  const std::vector<DecoderLayer*> layers_;
  std::mutex callers_;  // guards scratch_
  LayerScratch scratch_;
};

}  // namespace trimaran
