// A session with one shard as its client keeps books of it: which slots are free, and the next sequence.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "hop/arena.h"

namespace trimaran::hop {

// A call's place in an arena.
struct ClientPlace {
  uint32_t slot;
  uint32_t sequence;
};

// A slot whose answer nobody wants any more is free again only when the shard has answered: until then the
// shard may still read and write it. Any thread may call.
class ClientLine {
 public:
  // The slots before `first_slot` are somebody else's (a GPU's). Throws KernelError if none is left.
  ClientLine(std::shared_ptr<const Arena> arena, uint32_t first_slot);
  ClientLine(const ClientLine&) = delete;
  ClientLine& operator=(const ClientLine&) = delete;

  const Arena& arena() const { return *arena_; }
  // How long to spin for an answer: of the CPUs that the process had when the session began.
  std::chrono::nanoseconds spin() const { return spin_; }
  // Slots that a call may take now.
  uint32_t n_free();
  // Nothing if no slot is free.
  std::optional<ClientPlace> take();
  // The answer has been read.
  void release(ClientPlace place);
  // Nobody will read the answer.
  void abandon(ClientPlace place);

 private:
  void reap();

  const std::shared_ptr<const Arena> arena_;
  const std::chrono::nanoseconds spin_;
  std::mutex mutex_;
  std::vector<uint32_t> free_;
  std::vector<ClientPlace> abandoned_;
  uint32_t sequence_ = 0;
};

}  // namespace trimaran::hop
