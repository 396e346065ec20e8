#include "hop/doorbell.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <ctime>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace trimaran::hop {
namespace {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

long futex(Word& word, int operation, uint32_t value, const timespec* timeout) {
  // Not the PRIVATE operations: the peer maps the same page at another address.
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation, value, timeout, nullptr, 0);
}

void futex_wake(Word& word) { futex(word, FUTEX_WAKE, INT_MAX, nullptr); }

// Returns when woken, when `word` is not `expected`, at the deadline, or for no reason.
void futex_wait(Word& word, uint32_t expected, Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - Clock::now()).count();
  if (left <= 0) return;
  const timespec timeout{static_cast<time_t>(left / 1'000'000'000), static_cast<long>(left % 1'000'000'000)};
  futex(word, FUTEX_WAIT, expected, &timeout);
}

// Looks at `word` until `done(value)`, first spinning, then asleep. False at the deadline.
template <class Done>
bool wait_word(Word& word, Word& sleeping, Clock::time_point deadline, std::chrono::nanoseconds spin,
               const Done& done) {
  if (done(word.load(std::memory_order_acquire))) return true;
  if (spin.count() > 0) {
    const auto spin_end = std::min(deadline, Clock::now() + spin);
    do {
      for (int i = 0; i < 16; ++i) {
        if (done(word.load(std::memory_order_acquire))) return true;
        relax();
      }
    } while (Clock::now() < spin_end);
  }
  sleeping.store(1);
  bool is_done = false;
  while (true) {
    const uint32_t value = word.load();
    is_done = done(value);
    if (is_done || Clock::now() >= deadline) break;
    futex_wait(word, value, deadline);
  }
  sleeping.store(0);
  return is_done;
}

bool has_request(const Arena& arena, const std::vector<uint32_t>& served) {
  for (uint32_t slot = 0; slot < served.size(); ++slot) {
    if (arena.control(slot).request_sequence.load(std::memory_order_acquire) != served[slot]) return true;
  }
  return false;
}

void ring_bell(ArenaHeader& header) {
  header.bell.fetch_add(1);
  if (header.server_sleeping.load() != 0) futex_wake(header.bell);
}

}  // namespace

std::chrono::nanoseconds default_spin() {
  cpu_set_t cpus;
  // Of the process, not of this thread, which may sit on one CPU for now.
  const bool known = sched_getaffinity(getpid(), sizeof(cpus), &cpus) == 0;
  return std::chrono::microseconds(known && CPU_COUNT(&cpus) > 2 ? 20 : 0);
}

void ring(const Arena& arena, uint32_t slot, uint32_t sequence, int32_t layer, uint32_t n_tokens) {
  SlotControl& control = arena.control(slot);
  control.layer.store(layer, std::memory_order_relaxed);
  control.n_tokens.store(n_tokens, std::memory_order_relaxed);
  control.request_sequence.store(sequence, std::memory_order_release);
  ring_bell(arena.header());
}

std::optional<int32_t> wait_done(const Arena& arena, uint32_t slot, uint32_t sequence,
                                 Clock::time_point deadline, std::chrono::nanoseconds spin) {
  SlotControl& control = arena.control(slot);
  const auto done = [sequence](uint32_t value) { return value == sequence; };
  if (!wait_word(control.done_sequence, control.client_sleeping, deadline, spin, done)) return std::nullopt;
  return control.status.load(std::memory_order_relaxed);
}

// The bell changes after the word: a server that was about to sleep finds one of the two.
void begin_step(const Arena& arena) {
  arena.header().in_flight.store(1);
  ring_bell(arena.header());
}

void end_step(const Arena& arena) { arena.header().in_flight.store(0); }

void abandon(const Arena& arena) { arena.header().abandoned.store(1); }

void answer(const Arena& arena, uint32_t slot, uint32_t sequence, int32_t status) {
  SlotControl& control = arena.control(slot);
  control.status.store(status, std::memory_order_relaxed);
  control.done_sequence.store(sequence);
  if (control.client_sleeping.load() != 0) futex_wake(control.done_sequence);
}

void wait_bell(const Arena& arena, uint32_t seen, Clock::time_point deadline, std::chrono::nanoseconds spin) {
  ArenaHeader& header = arena.header();
  wait_word(header.bell, header.server_sleeping, deadline, spin,
            [seen](uint32_t value) { return value != seen; });
}

bool step_in_flight(const Arena& arena) { return arena.header().in_flight.load() != 0; }

void poll_slots(const Arena& arena, const std::vector<uint32_t>& served, uint32_t seen,
                Clock::time_point deadline, bool yields) {
  ArenaHeader& header = arena.header();
  do {
    for (int i = 0; i < 16; ++i) {
      if (has_request(arena, served) || header.bell.load(std::memory_order_acquire) != seen) return;
      if (yields) {
        sched_yield();
      } else {
        relax();
      }
    }
  } while (step_in_flight(arena) && Clock::now() < deadline);
}

void wake_server(const Arena& arena) {
  arena.header().bell.fetch_add(1);
  futex_wake(arena.header().bell);
}

}  // namespace trimaran::hop
