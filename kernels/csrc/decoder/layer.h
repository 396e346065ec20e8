// One block of the model, from residual stream to residual stream: attention, then its feed-forward network,
// each behind a norm and beside a residual.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/gate.h"
#include "attention/layer.h"
#include "hop/call_gate.h"
#include "runtime/engine.h"
#include "runtime/thread_pool.h"

namespace trimaran {

// Parts of a layer; whoever owns them outlives it.
struct DecoderParts {
  int index;  // of the layer: by this number the routed experts know it
  AttentionLayer* attention;
  std::vector<float> input_norm;  // [hidden], before the attention
  std::vector<float> post_norm;   // [hidden], behind it
  float eps;                      // of both norms
  Gate* gate;                     // to the routed experts; null: the layer has none
  ExpertEngine* always;           // layer 0 of an engine of one expert: the dense network, or the shared
                                  // experts; null: the layer has none
};

// When the parts of a layer began, and the last one ended, in nanoseconds of the monotonic clock.
struct LayerTimes {
  int64_t attention;
  int64_t gate;
  int64_t experts;
  int64_t always;
  int64_t end;
};

// What lies between the parts of a layer, for all layers in turn. [n, hidden] each, at least.
struct LayerScratch {
  std::vector<float> normed;
  std::vector<float> delta;
  std::vector<float> more;
  std::vector<int32_t> ids;    // [n, top_k]
  std::vector<float> weights;  // [n, top_k]
  std::vector<int32_t> zeros;  // ids and weights of who meets one expert always
  std::vector<float> ones;

  void resize(int64_t n, int64_t width);
};

class DecoderLayer {
 public:
  // Throws KernelError on parts that do not fit together.
  DecoderLayer(ThreadPool& pool, DecoderParts parts);

  const AttentionLayer& attention() const { return *parts_.attention; }
  int64_t hidden() const { return parts_.attention->hidden(); }
  bool is_routed() const { return parts_.gate != nullptr; }
  // How many routed experts a token gets.
  int top_k() const { return is_routed() ? parts_.gate->spec().top_k : 0; }

  // x: [n, hidden], changed in place, to the bit as by the parts one by one: x + attention, then
  // x + (routed + always). `routed` may be null if the layer has no gate. Returns the first status other than
  // 0 (call_gate.h); x is of no use then.
  int32_t run(float* x, const AttentionInput& input, const CacheLayer& cache, hop::CallGate* routed,
              LayerScratch& scratch, LayerTimes& times);

 private:
  int32_t compute_routed(hop::CallGate* routed, int64_t n, LayerScratch& scratch, LayerTimes& times) const;
  int32_t compute_always(int64_t n, const float* x, float* y, LayerScratch& scratch) const;

  ThreadPool& pool_;
  const DecoderParts parts_;
};

}  // namespace trimaran
