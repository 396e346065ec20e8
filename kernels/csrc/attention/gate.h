// From gate logits to experts and weights (arXiv 2405.04434 §2.1.2, 2412.19437 §2.1.2).
#pragma once

#include <cstdint>

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

}  // namespace trimaran
