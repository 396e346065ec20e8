// What the calls of a gate came to, layer by layer.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace trimaran::hop {

// Bucket i counts engine calls of less than 2^i microseconds that bucket i - 1 does not; the last one counts
// the rest, too.
constexpr int kLatencyBuckets = 26;
using Latencies = std::array<uint64_t, kLatencyBuckets>;

class CallStats {
 public:
  // Counts the router's choices of one call. `n_experts` are those of the whole model.
  void count_routes(int32_t layer, const std::vector<int32_t>& ids, int n_experts);
  void count_latency(int32_t layer, std::chrono::nanoseconds duration);

  // Layers that were never called are absent.
  std::map<int32_t, std::vector<uint64_t>> expert_tokens() const;
  std::map<int32_t, Latencies> latencies() const;

 private:
  mutable std::mutex mutex_;
  std::map<int32_t, std::vector<uint64_t>> routes_;
  std::map<int32_t, Latencies> latencies_;
};

}  // namespace trimaran::hop
