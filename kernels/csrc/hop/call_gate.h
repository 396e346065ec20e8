// The one door to the expert engine: checks what a peer sent, counts, and lets calls in one after another.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "hop/arena.h"
#include "hop/call_log.h"
#include "runtime/engine.h"

namespace trimaran::hop {

// Status codes of the hop that the engine itself does not have; the values are those of
// `trimaran.wire.Status`.
constexpr int32_t kBadSlot = 4;
constexpr int32_t kNotFinite = 5;
constexpr int32_t kShuttingDown = 7;

// One layer call in memory that a peer may still be writing to.
struct Call {
  int32_t layer;
  uint32_t n_tokens;
  const void* x;         // [n_tokens, hidden] of dtype
  const int32_t* ids;    // [n_tokens, top_k]
  const float* weights;  // [n_tokens, top_k]
  void* y;               // [n_tokens, hidden] of dtype
  DType dtype;
};

// Upper bounds of the buckets that calls are sorted into by the time they took, in nanoseconds; one more
// bucket is for longer calls.
constexpr std::array<uint64_t, 17> kBusyBounds = {
    5'000,      10'000,      20'000,      50'000,        100'000,      200'000,
    500'000,    1'000'000,   2'000'000,   5'000'000,     10'000'000,   20'000'000,
    50'000'000, 100'000'000, 500'000'000, 1'000'000'000, 5'000'000'000};

struct GateCounters {
  uint64_t calls;                                            // all, failed ones included
  uint64_t failures;                                         // answered with a status other than 0
  uint64_t tokens;                                           // of successful calls
  uint64_t busy_ns;                                          // time spent in the engine
  std::array<uint64_t, kBusyBounds.size() + 1> busy_counts;  // calls that got there, by kBusyBounds
  uint64_t bytes_read;                                       // expert weights that the engine read
  uint32_t waiting;                                          // calls inside or before the engine right now
};

class CallGate {
 public:
  // The engine must outlive the gate.
  explicit CallGate(ExpertEngine& engine) : engine_(engine) {}

  // Status code of the call, for at most `max_tokens` tokens. Ids and weights are copied before they are
  // checked, so that a peer that goes on writing harms nothing but its own result. Any thread may call.
  int32_t run(const Call& call, uint32_t max_tokens) noexcept;

  // The same for one slot of an arena; the slot's own layer and n_tokens are not looked at.
  int32_t run_slot(const Arena& arena, uint32_t slot, int32_t layer, uint32_t n_tokens) noexcept;

  const EngineDims& dims() const { return engine_.dims(); }
  GateCounters counters() const;
  const CallLog& log() const { return log_; }

  // By layer, how many tokens of successful calls the router gave to each expert; whole layers, all shards'
  // experts included. Layers that were never called are absent.
  std::map<int32_t, std::vector<uint64_t>> expert_tokens() const;

 private:
  int32_t run_locked(const Call& call, uint32_t max_tokens);
  int32_t compute(const Call& call);
  void count_time(uint64_t nanoseconds);
  void count_routes(int32_t layer);

  ExpertEngine& engine_;
  std::mutex mutex_;
  std::vector<int32_t> ids_;
  std::vector<float> weights_;
  CallLog log_;
  mutable std::mutex routes_mutex_;  // apart from mutex_, which is held as long as a call computes
  std::map<int32_t, std::vector<uint64_t>> routes_;
  std::atomic<uint64_t> calls_{0};
  std::atomic<uint64_t> failures_{0};
  std::atomic<uint64_t> tokens_{0};
  std::atomic<uint64_t> busy_ns_{0};
  std::array<std::atomic<uint64_t>, kBusyBounds.size() + 1> busy_counts_{};
  std::atomic<uint32_t> waiting_{0};
};

}  // namespace trimaran::hop
