// What the calls of a gate came to, layer by layer.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace trimaran::hop {

// Upper bounds of the buckets that engine calls are sorted into by the time they took, in nanoseconds; one
// more bucket is for longer calls.
constexpr std::array<uint64_t, 17> kBusyBounds = {
    5'000,      10'000,      20'000,      50'000,        100'000,      200'000,
    500'000,    1'000'000,   2'000'000,   5'000'000,     10'000'000,   20'000'000,
    50'000'000, 100'000'000, 500'000'000, 1'000'000'000, 5'000'000'000};
using Latencies = std::array<uint64_t, kBusyBounds.size() + 1>;

class CallStats {
 public:
  // Counts the router's choices of one call, without the skipped ones. `n_experts` are those of the whole
  // model.
  void count_routes(int32_t layer, const std::vector<int32_t>& ids, int n_experts);
  void count_latency(int32_t layer, uint64_t nanoseconds);

  // Layers that were never called are absent.
  std::map<int32_t, std::vector<uint64_t>> expert_tokens() const;
  std::map<int32_t, Latencies> latencies() const;
  // Summed over the layers.
  Latencies total() const;

 private:
  mutable std::mutex mutex_;
  std::map<int32_t, std::vector<uint64_t>> routes_;
  std::map<int32_t, Latencies> latencies_;
};

}  // namespace trimaran::hop
