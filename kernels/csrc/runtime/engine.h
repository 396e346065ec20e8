// The routed experts of a model: y = Σ_j weight_j · down_j(silu(gate_j x) · up_j x), from the file's own
// bits.
#pragma once

#include <cstdint>
#include <memory>

#include "isa/primitives.h"
#include "runtime/matrix.h"
#include "runtime/status.h"
#include "runtime/thread_pool.h"

namespace trimaran {

struct EngineDims {
  int hidden;
  int intermediate;
  int n_experts;  // of the whole model: valid ids are [0, n_experts)
  int top_k;
  int max_tokens;  // of one call
};

// Weights of one layer of this shard, each matrix in the file's layout or packed: experts [first_expert,
// first_expert + n_experts), one after another.
struct LayerWeights {
  Matrix gate;  // n_experts × [intermediate, hidden]
  Matrix up;    // n_experts × [intermediate, hidden]
  Matrix down;  // n_experts × [hidden, intermediate]
  int first_expert;
  int n_experts;
};

// Results do not depend on the number of threads nor on the other tokens of a call: every dot product has one
// fixed order of operations, and a token's experts are summed in the order of its ids. Packed matrices read
// int8 activations with a scale per 16 columns, others f32. Where the CPU has matrix tiles (AMX), an expert
// that is all packed and gets some tokens of a call (TilePrimitives::least_tokens) reads activations in bf16:
// then results do depend on how many other tokens choose it, within the rounding of activations.
class ExpertEngine {
 public:
  // The pool and the primitives must outlive the engine. Throws KernelError on dimensions < 1.
  // exact: activations are not rounded to 8 bits, and results do not depend on other tokens on any CPU. Rows
  // of the file meet f32; packed weights, which then need matrix tiles, meet two bf16 terms (error near
  // 2^-16).
  ExpertEngine(ThreadPool& pool, const Primitives& primitives, const EngineDims& dims, bool exact = false);
  ~ExpertEngine();
  ExpertEngine(const ExpertEngine&) = delete;
  ExpertEngine& operator=(const ExpertEngine&) = delete;

  // Takes the pointers, copies nothing: the memory must outlive the engine. Throws KernelError on a type
  // whose blocks do not divide the row, on too few bytes, on a bad expert range, on a layer that is there
  // already, and of an exact engine on packed weights that it has no exact kernel for.
  void add_layer(int layer, const LayerWeights& weights);

  // x, y: [n_tokens, hidden] of dtype, row-major; ids: [n_tokens, top_k]; weights: [n_tokens, top_k] f32.
  // Ids outside this shard's range (but inside the model's) add nothing, so shards' outputs can be summed;
  // kSkipped adds nothing either, whatever its weight; an id may repeat. n_tokens is in [0, max_tokens]. On
  // an error y is untouched. A NaN or infinity in x or weights shows in that token's y and nowhere else. Safe
  // to call from several threads; calls run one after another.
  Status forward(int layer, int n_tokens, const void* x, const int32_t* ids, const float* weights, void* y,
                 DType dtype) noexcept;

  // No call follows soon: the threads sleep, for another process may need their cores.
  void rest() noexcept;

  const EngineDims& dims() const;
  const char* isa() const;  // name of the implementation, e.g. "avx2"
  bool has_layer(int layer) const;
  // Weight bytes that forward() has read since the engine was made.
  uint64_t bytes_read() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace trimaran
