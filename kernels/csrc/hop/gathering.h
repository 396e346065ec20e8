// Whether a call shall wait for another client's call for the same layer, and for how long at most.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>

#include "hop/call.h"

namespace trimaran::hop {

// Waiting pays where both calls need the same experts: these are then read once. So the window is
//
//   min(an eighth of what the call takes alone, half of what reading the common experts takes),
//
// and it opens only if another client is expected within it: one that was answered in the layer before and is
// about as far from this layer as the time that it usually takes between two layers. A single client never
// waits, nor do calls whose experts hardly overlap: one token each of DeepSeek-V3, 8 of 256 experts; nor does
// a call wait for one that could not ride with it, going by that client's last call. Times are what the
// engine took and what clients did, as moving averages. Not thread-safe.
class Gathering {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Span = std::chrono::nanoseconds;

  // A call as it comes in. `n_experts` are the different ones that it needs.
  struct Ask {
    uint64_t client;  // 0: unknown, never waits nor is waited for
    int32_t layer;
    uint32_t n_tokens;
    uint32_t n_experts;
    DType dtype = DType::f32;
  };

  static constexpr int kShare = 8;                                  // of a call's own time: one in so many
  static constexpr Span kShortest = std::chrono::microseconds(30);  // a sleep is no more exact than that

  // n_experts, top_k: of the model. max_tokens: of one engine call.
  Gathering(uint32_t n_experts, uint32_t top_k, uint32_t max_tokens)
      : n_experts_(n_experts), top_k_(top_k), max_tokens_(max_tokens) {}

  // Tokens of an engine call that `leader` begins, its company's included.
  uint64_t most_tokens(const Ask& leader) const;

  void arrived(const Ask& ask, Time now);
  // The call's answer is there. busy: what the engine took for it if it was alone there, else 0.
  void answered(const Ask& ask, Time now, Span busy);
  void forget(uint64_t client) { clients_.erase(client); }

  // When a call that could start now shall start at the latest: `now` unless it is worth waiting.
  Time start_by(const Ask& ask, Time now) const;

 private:
  struct Client {
    Ask last{};
    bool asking = false;  // its last call is not answered
    Time answered{};
    Span gap{0};  // from an answer to the call for the next layer; 0: not known
  };

  Span window(const Ask& ask, const Ask& other) const;

  const uint32_t n_experts_;
  const uint32_t top_k_;
  const uint32_t max_tokens_;
  Span expert_time_{0};  // of reading one expert; 0: not known
  std::map<uint64_t, Client> clients_;
};

}  // namespace trimaran::hop
