// Ringing and waiting across processes: sequence numbers in the arena, a short spin, then a futex.
//
// No wake-up is lost: a waiter announces itself (…_sleeping), then looks once more before it sleeps; a ringer
// publishes, then looks whether anyone announced itself. Both orders are sequentially consistent, so at least
// one of the two sees the other.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "hop/arena.h"

namespace trimaran::hop {

using Clock = std::chrono::steady_clock;

// How long to spin before sleeping: a few microseconds, or not at all where the peer needs this very core.
std::chrono::nanoseconds default_spin();

// Client: publishes a request that is already in the slot's tensors.
void ring(const Arena& arena, uint32_t slot, uint32_t sequence, int32_t layer, uint32_t n_tokens);

// Client: the status of request `sequence`, or nothing at `deadline`.
std::optional<int32_t> wait_done(const Arena& arena, uint32_t slot, uint32_t sequence,
                                 Clock::time_point deadline, std::chrono::nanoseconds spin);

// Server: answers request `sequence`.
void answer(const Arena& arena, uint32_t slot, uint32_t sequence, int32_t status);

// Server: returns when the bell no longer shows `seen`, or at `deadline`.
void wait_bell(const Arena& arena, uint32_t seen, Clock::time_point deadline, std::chrono::nanoseconds spin);

// Server: makes a thread that sleeps in `wait_bell` look up.
void wake_server(const Arena& arena);

}  // namespace trimaran::hop
