#include "hop/worker.h"

#include <pthread.h>
#include <sched.h>

#include "hop/doorbell.h"

namespace trimaran::hop {
namespace {

// A bound on every sleep, so that even a lost wake-up costs no more than this.
constexpr auto kLongestSleep = std::chrono::milliseconds(500);

// How long a step is polled for that asks nothing, and how often it is looked at from then on.
constexpr auto kLongestPoll = std::chrono::seconds(1);
constexpr auto kRareLook = std::chrono::milliseconds(2);

void pin_to(int cpu) {
  if (cpu < 0 || cpu >= CPU_SETSIZE) return;
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(cpu, &cpus);
  pthread_setaffinity_np(pthread_self(), sizeof(cpus), &cpus);  // a refusal costs speed only
}

}  // namespace

ArenaWorker::ArenaWorker(const Arena& arena, CallGate& gate, int cpu)
    : arena_(arena), gate_(gate), client_(gate.join()), served_(arena.dims().n_slots, 0) {
  if (arena.dims().hidden != static_cast<uint32_t>(gate.dims().hidden) ||
      arena.dims().top_k != static_cast<uint32_t>(gate.dims().top_k)) {
    throw KernelError("arena: its hidden size and top_k are not the model's");
  }
  // The spin is measured from the whole process's CPUs, before the thread is pinned to one of them.
  const auto spin = default_spin();
  thread_ = std::thread([this, cpu, spin] {
    pin_to(cpu);
    serve(spin);
    serve_pending();
    gate_.leave(client_);
    finished_.store(true);
  });
}

ArenaWorker::~ArenaWorker() { stop(); }

void ArenaWorker::request_stop() {
  stopping_.store(true);
  wake_server(arena_);
}

void ArenaWorker::stop() {
  if (!thread_.joinable()) return;
  request_stop();
  thread_.join();
}

void ArenaWorker::serve(std::chrono::nanoseconds spin) {
  uint32_t last_bell = 0;
  Clock::time_point poll_end{};
  while (!stopping_.load() && !arena_.lost()) {
    const uint32_t bell = arena_.header().bell.load(std::memory_order_acquire);
    if (serve_pending() || bell != last_bell) {
      last_bell = bell;
      poll_end = Clock::now() + kLongestPoll;
      continue;
    }
    if (!step_in_flight(arena_)) {
      wait_bell(arena_, bell, Clock::now() + kLongestSleep, spin);
    } else if (Clock::now() < poll_end) {
      poll_slots(arena_, served_, bell, poll_end, spin.count() == 0);
    } else {
      wait_bell(arena_, bell, Clock::now() + kRareLook, std::chrono::nanoseconds(0));
    }
  }
}

bool ArenaWorker::next_request(uint32_t slot, uint32_t& sequence) {
  sequence = arena_.control(slot).request_sequence.load(std::memory_order_acquire);
  if (sequence == served_[slot]) return false;
  served_[slot] = sequence;
  return true;
}

bool ArenaWorker::serve_pending() {
  bool any = false;
  uint32_t sequence = 0;
  for (uint32_t slot = 0; slot < served_.size(); ++slot) {
    if (!next_request(slot, sequence)) continue;
    any = true;
    const SlotControl& control = arena_.control(slot);
    const int32_t layer = control.layer.load(std::memory_order_relaxed);
    const uint32_t n_tokens = control.n_tokens.load(std::memory_order_relaxed);
    const int32_t status =
        stopping_.load() ? kShuttingDown : gate_.run_slot(arena_, slot, layer, n_tokens, client_);
    answer(arena_, slot, sequence, status);
  }
  return any;
}

}  // namespace trimaran::hop
