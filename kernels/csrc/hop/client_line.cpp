#include "hop/client_line.h"

#include <algorithm>

#include "hop/doorbell.h"

namespace trimaran::hop {

ClientLine::ClientLine(std::shared_ptr<const Arena> arena, uint32_t first_slot)
    : arena_(std::move(arena)), spin_(default_spin()) {
  const uint32_t n_slots = arena_->dims().n_slots;
  if (first_slot >= n_slots) {
    throw KernelError("first_slot: the arena has " + std::to_string(n_slots) + " slots, none from " +
                      std::to_string(first_slot) + " on");
  }
  for (uint32_t slot = n_slots; slot-- > first_slot;) {
    free_.push_back(slot);
    // An arena may have been used before: answers of then shall not be taken for ours.
    sequence_ = std::max(sequence_, arena_->control(slot).request_sequence.load());
  }
}

uint32_t ClientLine::n_free() {
  const std::lock_guard<std::mutex> lock(mutex_);
  reap();
  return static_cast<uint32_t>(free_.size());
}

std::optional<ClientPlace> ClientLine::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  reap();
  if (free_.empty()) return std::nullopt;
  if (++sequence_ == 0) ++sequence_;  // fresh slots hold 0
  const ClientPlace place{free_.back(), sequence_};
  free_.pop_back();
  return place;
}

void ClientLine::release(ClientPlace place) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(place.slot);
}

void ClientLine::abandon(ClientPlace place) {
  const std::lock_guard<std::mutex> lock(mutex_);
  abandoned_.push_back(place);
}

void ClientLine::reap() {
  const auto answered = [this](const ClientPlace& place) {
    const Word& done = arena_->control(place.slot).done_sequence;
    if (done.load(std::memory_order_acquire) != place.sequence) return false;
    free_.push_back(place.slot);
    return true;
  };
  abandoned_.erase(std::remove_if(abandoned_.begin(), abandoned_.end(), answered), abandoned_.end());
}

}  // namespace trimaran::hop
