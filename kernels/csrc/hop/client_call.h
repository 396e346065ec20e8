// A client's call of one layer on all shards at once: tensors in, bells, answers summed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "hop/client_line.h"
#include "hop/doorbell.h"

namespace trimaran::hop {

// Tokens of one layer, in the caller's memory.
struct ClientBatch {
  int32_t layer;
  uint32_t n_tokens;
  const void* x;         // [n_tokens, hidden] of dtype: f32, or what the arenas hold
  const int32_t* ids;    // [n_tokens, top_k]
  const float* weights;  // [n_tokens, top_k]
  DType dtype;
};

using ClientLines = std::vector<std::shared_ptr<ClientLine>>;

// What waits for a call that was started. It ends with every slot given back or abandoned. One thread at a
// time may use it.
class ClientCall {
 public:
  // Starts the call on every shard, or on none: nullptr if a shard has no free slot. `lines` are of equal
  // dimensions but for their slots, at least one, and `batch` fits into their slots; see check_batch.
  static std::unique_ptr<ClientCall> start(const ClientLines& lines, const ClientBatch& batch);

  ~ClientCall() { abandon(); }
  ClientCall(const ClientCall&) = delete;
  ClientCall& operator=(const ClientCall&) = delete;

  // Takes the shards' answers in their order: y, f32 [n_tokens, hidden], becomes their sum. A status code: 0
  // once all are in y, another as soon as a shard answers it, nothing at the deadline. What was not answered
  // may be asked for again, with the same y.
  std::optional<int32_t> collect(Clock::time_point deadline, float* y);

  // The shard that the last collect() got no good answer from, as an index of `lines`; their number if all
  // are in y.
  size_t shard() const { return n_answered_; }
  uint32_t n_tokens() const { return n_tokens_; }
  const ArenaDims& dims() const { return lines_.front()->arena().dims(); }

  // Nobody will wait any more. May be called twice.
  void abandon();

 private:
  ClientCall(const ClientLines& lines, std::vector<ClientPlace> places, uint32_t n_tokens)
      : lines_(lines), places_(std::move(places)), n_tokens_(n_tokens) {}

  const ClientLines lines_;
  const std::vector<ClientPlace> places_;  // by line
  const uint32_t n_tokens_;
  size_t n_answered_ = 0;  // lines whose answer is in y
  size_t n_settled_ = 0;   // lines whose slot is no longer this call's
};

// Throws KernelError unless there is a line and all are of the first one's dimensions, slots aside.
void check_lines(const ClientLines& lines);

}  // namespace trimaran::hop
