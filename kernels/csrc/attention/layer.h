// One layer's attention from its normalised input to its output: the projections and what lies between them.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cache_layer.h"
#include "attention/maps.h"
#include "attention/mla.h"
#include "runtime/linear.h"
#include "runtime/thread_pool.h"

namespace trimaran {

// Matrices and norms of a layer; whoever owns them outlives it. Queries with a LoRA come from two matrices
// with a norm in between, others have query_down null and query_norm empty.
struct AttentionWeights {
  Linear* query_down;  // hidden → rank
  std::vector<float> query_norm;
  Linear* query;  // hidden or rank → heads × (nope + rope)
  Linear* kv;     // hidden → latent + rope
  std::vector<float> kv_norm;
  const LatentMaps* maps;
  Linear* output;  // heads × value → hidden
  float eps;       // of both norms
};

// A step's tokens as all layers see them.
struct AttentionInput {
  int64_t n;
  const float* cos;  // [n, rope / 2]
  const float* sin;
  const int32_t* slots;  // [n], where their latents go
  const std::vector<Segment>& segments;
};

class AttentionLayer {
 public:
  // Throws KernelError on matrices that do not fit together.
  AttentionLayer(ThreadPool& pool, Mla& mla, AttentionWeights weights);

  const Mla& mla() const { return mla_; }
  const LatentMaps& maps() const { return *weights_.maps; }
  int64_t hidden() const { return weights_.kv->columns(); }

  // x, out: [n, hidden]. Stores the tokens' latents in the cache. The same bits as the calls one by one.
  void run(const float* x, const AttentionInput& input, const CacheLayer& cache, float* out);

 private:
  void project_query(const float* x, int64_t n, float* query);

  ThreadPool& pool_;
  Mla& mla_;
  const AttentionWeights weights_;
};

}  // namespace trimaran
