#include "hop/call_stats.h"

#include <algorithm>

#include "runtime/route.h"

namespace trimaran::hop {

void CallStats::count_routes(int32_t layer, const std::vector<int32_t>& ids, int n_experts) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<uint64_t>& counts = routes_[layer];
  counts.resize(static_cast<size_t>(n_experts));
  for (const int32_t id : ids) {
    if (id != kSkipped) ++counts[static_cast<size_t>(id)];
  }
}

void CallStats::count_latency(int32_t layer, uint64_t nanoseconds) {
  const auto bound = std::lower_bound(kBusyBounds.begin(), kBusyBounds.end(), nanoseconds);
  const std::lock_guard<std::mutex> lock(mutex_);
  ++latencies_[layer][static_cast<size_t>(bound - kBusyBounds.begin())];
}

std::map<int32_t, std::vector<uint64_t>> CallStats::expert_tokens() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return routes_;
}

std::map<int32_t, Latencies> CallStats::latencies() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return latencies_;
}

Latencies CallStats::total() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Latencies total{};
  for (const auto& [layer, counts] : latencies_) {
    for (size_t i = 0; i < counts.size(); ++i) total[i] += counts[i];
  }
  return total;
}

}  // namespace trimaran::hop
