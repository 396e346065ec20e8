#include "attention/gate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "runtime/buffers.h"
#include "runtime/status.h"

namespace trimaran {
namespace {

constexpr int64_t kTokensOfItem = 16;
constexpr float kNever = -std::numeric_limits<float>::infinity();

void require(bool holds, const char* reason) {
  if (!holds) throw KernelError(std::string("gate: ") + reason);
}

void softmax(const float* logits, int n, float* scores) {
  const float peak = *std::max_element(logits, logits + n);
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += scores[i] = std::exp(logits[i] - peak);
  for (int i = 0; i < n; ++i) scores[i] /= sum;
}

// Ids of the k highest of n ranks, best first. k and n are small.
void best_of(const float* ranks, int n, int k, int32_t* ids) {
  int found = 0;
  for (int i = 0; i < n; ++i) {
    if (found == k && !(ranks[i] > ranks[ids[k - 1]])) continue;
    int place = std::min(found, k - 1);
    while (place > 0 && ranks[i] > ranks[ids[place - 1]]) {
      ids[place] = ids[place - 1];
      --place;
    }
    ids[place] = i;
    found = std::min(found + 1, k);
  }
}

struct Workspace {
  std::vector<float> scores, ranks, groups;
  std::vector<int32_t> best;
  explicit Workspace(const GateSpec& spec)
      : scores(static_cast<size_t>(spec.n_experts)),
        ranks(scores.size()),
        groups(static_cast<size_t>(spec.n_groups)),
        best(static_cast<size_t>(std::max(spec.n_groups_used, spec.group_best))) {}
};

// Experts outside the best groups get no rank.
void drop_groups(const GateSpec& spec, Workspace& w) {
  const int size = spec.n_experts / spec.n_groups;
  for (int g = 0; g < spec.n_groups; ++g) {
    const float* ranks = &w.ranks[static_cast<size_t>(g * size)];
    best_of(ranks, size, spec.group_best, w.best.data());
    float sum = 0;
    for (int i = 0; i < spec.group_best; ++i) sum += ranks[w.best[static_cast<size_t>(i)]];
    w.groups[static_cast<size_t>(g)] = sum;
  }
  best_of(w.groups.data(), spec.n_groups, spec.n_groups_used, w.best.data());
  for (int g = 0; g < spec.n_groups; ++g) {
    const auto used = w.best.begin() + spec.n_groups_used;
    if (std::find(w.best.begin(), used, g) == used) std::fill_n(w.ranks.begin() + g * size, size, kNever);
  }
}

void route_token(const GateSpec& spec, const float* logits, const float* bias, Workspace& w, int32_t* ids,
                 float* weights) {
  const auto n = static_cast<size_t>(spec.n_experts);
  if (spec.softmax) {
    softmax(logits, spec.n_experts, w.scores.data());
  } else {
    for (size_t i = 0; i < n; ++i) w.scores[i] = 1 / (1 + std::exp(-logits[i]));
  }
  for (size_t i = 0; i < n; ++i) {
    const float rank = bias == nullptr ? w.scores[i] : w.scores[i] + bias[i];
    w.ranks[i] = std::isnan(rank) ? kNever : rank;
  }
  if (spec.n_groups > 1) drop_groups(spec, w);
  best_of(w.ranks.data(), spec.n_experts, spec.top_k, ids);
  float sum = 0;
  for (int i = 0; i < spec.top_k; ++i) sum += weights[i] = w.scores[static_cast<size_t>(ids[i])];
  const float factor = (spec.normalise ? 1 / (sum + 1e-20f) : 1.0f) * spec.weights_scale;
  for (int i = 0; i < spec.top_k; ++i) weights[i] *= factor;
}

}  // namespace

void check_gate(const GateSpec& spec) {
  require(spec.n_experts >= 1, "need at least 1 expert");
  require(spec.top_k >= 1 && spec.top_k <= spec.n_experts, "top_k must be 1 to the number of experts");
  require(spec.n_groups >= 1 && spec.n_experts % spec.n_groups == 0, "groups must be equal in size");
  require(spec.n_groups_used >= 1 && spec.n_groups_used <= spec.n_groups, "uses more groups than there are");
  const int size = spec.n_experts / spec.n_groups;
  require(spec.group_best >= 1 && spec.group_best <= size, "a group has too few experts for its score");
  require(spec.top_k <= size * spec.n_groups_used, "the groups in use have fewer than top_k experts");
}

void route_tokens(ThreadPool& pool, const GateSpec& spec, const float* logits, const float* bias, int64_t n,
                  int32_t* ids, float* weights) {
  std::vector<Workspace> workers(static_cast<size_t>(pool.size()), Workspace(spec));
  const int64_t items = (n + kTokensOfItem - 1) / kTokensOfItem;
  pool.parallel_for(items, [&](int64_t item, int worker) {
    const int64_t last = std::min(n, (item + 1) * kTokensOfItem);
    for (int64_t t = item * kTokensOfItem; t < last; ++t) {
      route_token(spec, logits + t * spec.n_experts, bias, workers[static_cast<size_t>(worker)],
                  ids + t * spec.top_k, weights + t * spec.top_k);
    }
  });
}

Gate::Gate(ThreadPool& pool, const Primitives& primitives, const GateSpec& spec, const Matrix& weight,
           int64_t hidden, std::vector<float> bias)
    : pool_(pool),
      spec_(spec),
      bias_(std::move(bias)),
      linear_(pool, primitives, weight, spec.n_experts, hidden) {
  require(bias_.empty() || bias_.size() == static_cast<size_t>(spec.n_experts),
          "need a bias for each expert");
}

void Gate::route(const float* x, int64_t n, int32_t* ids, float* weights) {
  const std::lock_guard<std::mutex> lock(callers_);
  ensure_size(logits_, static_cast<size_t>(n * spec_.n_experts));
  linear_.multiply(x, n, logits_.data());
  route_tokens(pool_, spec_, logits_.data(), bias_.empty() ? nullptr : bias_.data(), n, ids, weights);
}

}  // namespace trimaran
