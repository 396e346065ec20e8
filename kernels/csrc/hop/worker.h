// The native loop that serves one client's arena: no Python, no GIL, asleep when there is nothing to do.
//
// While the client has a step in flight it keeps looking instead: a GPU rings by its request sequence alone.
// A client that is silent in the middle of a step, as a killed one is, is looked at rarely after a second.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "hop/arena.h"
#include "hop/call_gate.h"

namespace trimaran::hop {

class ArenaWorker {
 public:
  // Starts the thread, pinned to `cpu` unless that is negative. Arena and gate must outlive the worker.
  // Throws KernelError if the arena's dimensions are not the engine's.
  ArenaWorker(const Arena& arena, CallGate& gate, int cpu);
  ~ArenaWorker();
  ArenaWorker(const ArenaWorker&) = delete;
  ArenaWorker& operator=(const ArenaWorker&) = delete;

  // Lets the call in flight finish and answers what else was asked with kShuttingDown. Returns at once.
  void request_stop();
  // Whether the thread will not touch the arena any more.
  bool finished() const { return finished_.load(); }
  // request_stop(), then waits for the thread. May be called twice.
  void stop();

 private:
  void serve(std::chrono::nanoseconds spin);
  bool serve_pending();
  bool next_request(uint32_t slot, uint32_t& sequence);

  const Arena& arena_;
  CallGate& gate_;
  const uint64_t client_;         // as the gate knows it
  std::vector<uint32_t> served_;  // by slot: the last request sequence that was answered
  std::atomic<bool> stopping_{false};
  std::atomic<bool> finished_{false};
  std::thread thread_;
};

}  // namespace trimaran::hop
