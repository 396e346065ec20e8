// Ringing and waiting across processes: sequence numbers in the arena, a short spin, then a futex.
//
// No wake-up is lost: a waiter announces itself (…_sleeping), then looks once more before it sleeps; a ringer
// publishes, then looks whether anyone announced itself. Both orders are sequentially consistent, so at least
// one of the two sees the other.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

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

// Client: from now on requests may come without a bell, from a GPU that cannot make system calls. Wakes the
// server, which looks at the slots until `end_step`.
void begin_step(const Arena& arena);
void end_step(const Arena& arena);

// Client: ends the waits of whoever still expects an answer in this arena (a GPU: it looks at this word).
void abandon(const Arena& arena);

// Server: answers request `sequence`.
void answer(const Arena& arena, uint32_t slot, uint32_t sequence, int32_t status);

// Server: returns when the bell no longer shows `seen`, or at `deadline`.
void wait_bell(const Arena& arena, uint32_t seen, Clock::time_point deadline, std::chrono::nanoseconds spin);

// Server: whether the client is in a step.
bool step_in_flight(const Arena& arena);

// Server: keeps looking, without sleeping, until a slot's request is not `served`, the bell no longer shows
// `seen`, the step is over, or `deadline`. `yields`: lets others have the core between looks.
void poll_slots(const Arena& arena, const std::vector<uint32_t>& served, uint32_t seen,
                Clock::time_point deadline, bool yields);

// Server: makes a thread that sleeps in `wait_bell` look up.
void wake_server(const Arena& arena);

}  // namespace trimaran::hop
