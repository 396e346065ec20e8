// From gate logits to experts and weights (arXiv 2405.04434 §2.1.2, 2412.19437 §2.1.2).
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "runtime/linear.h"
#include "runtime/thread_pool.h"

namespace trimaran {

struct GateSpec {
  int n_experts;
  int top_k;
  bool softmax;  // else sigmoid
  int n_groups;  // 1: no groups
  int n_groups_used;
  int group_best;  // a group's score is the sum of its so many best ranks
  bool normalise;
  float weights_scale;
};

// Throws KernelError on numbers that contradict each other.
void check_gate(const GateSpec& spec);

// logits: [n, experts]; bias: [experts] or null, it takes part in the choice only. Experts come in descending
// rank, equal ones in ascending order of their ids; a NaN ranks lowest.
void route_tokens(ThreadPool& pool, const GateSpec& spec, const float* logits, const float* bias, int64_t n,
                  int32_t* ids, float* weights);

// The gate of one layer: logits = x · Wᵀ, then route_tokens.
class Gate {
 public:
  // weight: [experts, hidden]; bias: [experts], or empty. The pool, the primitives and the weight's memory
  // must outlive this. Throws KernelError on a matrix that does not fit.
  Gate(ThreadPool& pool, const Primitives& primitives, const GateSpec& spec, const Matrix& weight,
       int64_t hidden, std::vector<float> bias);

  const GateSpec& spec() const { return spec_; }
  int64_t hidden() const { return linear_.columns(); }

  // x: [n, hidden] → ids, weights: [n, top_k]. Any thread may call, one after another.
  void route(const float* x, int64_t n, int32_t* ids, float* weights);

 private:
  ThreadPool& pool_;
  const GateSpec spec_;
  const std::vector<float> bias_;
  Linear linear_;
  std::mutex callers_;  // guards logits_
  std::vector<float> logits_;
};

}  // namespace trimaran
