// Many threads at the call gate, and hostile slots before the worker, to be compiled with AddressSanitizer
// and UndefinedBehaviorSanitizer, or with ThreadSanitizer: races and overruns of the hop show here.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "hop/arena.h"
#include "hop/call_gate.h"
#include "hop/doorbell.h"
#include "hop/recorder.h"
#include "hop/slot_io.h"
#include "hop/worker.h"
#include "hop_support.h"
#include "runtime/route.h"

namespace {

using namespace trimaran;
using namespace trimaran::hop;

// Every third choice after the first; their weights must not matter.
void skip_some(Tokens& tokens) {
  for (size_t i = 1; i < tokens.ids.size(); i += 3) {
    tokens.ids[i] = kSkipped;
    tokens.weights[i] = std::numeric_limits<float>::quiet_NaN();
  }
}

template <class Condition>
void wait_until(const Condition& condition) {
  const auto deadline = Clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    CHECK(Clock::now() < deadline);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// While somebody holds the pool, the first call is stuck in the engine and the others must merge.
void test_waiting_calls_become_one(Bench& bench) {
  CallGate gate(bench.engine);
  std::atomic<bool> held{false}, release{false};
  std::thread holder([&] {
    bench.pool.parallel_for(1, [&](int64_t, int) {
      held = true;
      while (!release) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
  });
  wait_until([&] { return held.load(); });
  std::vector<std::unique_ptr<Tokens>> calls;
  std::vector<std::thread> callers;
  std::vector<int32_t> statuses(5, -1);
  for (size_t i = 0; i < statuses.size(); ++i) {
    calls.push_back(std::make_unique<Tokens>(1 + static_cast<int>(i), static_cast<unsigned>(i)));
    if (i == 2) calls[i]->x[5] = std::numeric_limits<float>::quiet_NaN();
    callers.emplace_back([&, i] { statuses[i] = gate.run(calls[i]->call(), kMost); });
    wait_until([&] { return gate.counters().waiting + gate.counters().calls == i + 1; });
  }
  // Counted is not queued yet, if only by a moment.
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  release = true;
  for (std::thread& caller : callers) caller.join();
  holder.join();
  const GateCounters counters = gate.counters();
  CHECK(counters.calls == 5 && counters.failures == 1 && counters.waiting == 0);
  CHECK(counters.engine_calls == 2 && counters.merged_calls == 3);
  for (size_t i = 0; i < statuses.size(); ++i) {
    CHECK(statuses[i] == (i == 2 ? kNotFinite : 0));
    if (i != 2) CHECK(bench.answers_as_alone(*calls[i]));
  }
}

// Good and bad calls from many threads, counters read and a recording begun and ended meanwhile.
void test_a_crowd(Bench& bench, const std::string& folder) {
  CallGate gate(bench.engine);
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 6; ++seed) {
    threads.emplace_back([&gate, seed] {
      for (unsigned turn = 0; turn < 60; ++turn) {
        Tokens tokens(static_cast<int>((seed + turn) % 40), 100 * seed + turn);
        const bool bad_id = turn % 7 == 3 && !tokens.ids.empty();
        if (bad_id) tokens.ids[0] = -2;
        if (turn % 5 == 2) skip_some(tokens);
        const int32_t layer = turn % 11 == 5 ? kLayer + 1 : kLayer;
        const int32_t expected = layer != kLayer ? 1 : bad_id ? 3 : 0;
        CHECK(gate.run(tokens.call(layer), 64) == expected);
      }
    });
  }
  threads.emplace_back([&] {
    for (int i = 0; !done.load(); ++i) {
      const std::string path = folder + "/recording-" + std::to_string(i);
      auto recorder = std::make_shared<Recorder>(path, 100'000, Bench::dims(), "print");
      gate.record(recorder);
      (void)gate.counters();
      (void)gate.expert_tokens();
      (void)gate.latencies();
      (void)recorder->calls();
      gate.record(nullptr);
      unlink(path.c_str());
    }
  });
  for (size_t i = 0; i + 1 < threads.size(); ++i) threads[i].join();
  done = true;
  threads.back().join();
  CHECK(gate.counters().calls == 360 && gate.counters().waiting == 0);
}

// Two clients of two arenas, one of which writes nonsense; then the worker is stopped amid calls.
void test_workers(Bench& bench, const std::string& folder) {
  CallGate gate(bench.engine);
  const ArenaDims dims{kHidden, kTopK, 4, 2, DType::f32};
  const Arena arena(make_arena(folder + "/arena", dims));
  const Arena hostile_arena(make_arena(folder + "/hostile", {kHidden, kTopK, 4, 2, DType::bf16}));
  auto worker = std::make_unique<ArenaWorker>(arena, gate, -1);
  ArenaWorker hostile_worker(hostile_arena, gate, -1);
  std::thread hostile([&] {
    std::mt19937 random(5);
    for (uint32_t i = 1; i < 300; ++i) {
      Tokens tokens(4, i);
      tokens.ids[i % tokens.ids.size()] = static_cast<int32_t>(random() % 9) - 4;
      put_tokens(hostile_arena, 0, 4, tokens.x.data(), DType::f32, tokens.ids.data(), tokens.weights.data());
      ring(hostile_arena, 0, i, static_cast<int32_t>(random() % 5),
           random() % 7 * (i % 3 == 0 ? 1u << 28 : 1));
      CHECK(wait_done(hostile_arena, 0, i, Clock::now() + std::chrono::seconds(30), default_spin()));
    }
  });
  for (uint32_t i = 1; i < 200; ++i) {
    Tokens tokens(3, i);
    if (i % 4 == 1) skip_some(tokens);
    put_tokens(arena, i % 2, 3, tokens.x.data(), DType::f32, tokens.ids.data(), tokens.weights.data());
    ring(arena, i % 2, i, kLayer, 3);
    const auto status = wait_done(arena, i % 2, i, Clock::now() + std::chrono::seconds(30), default_spin());
    CHECK(status && *status == 0);
    add_answer(arena, i % 2, 3, tokens.y.data());
    CHECK(bench.answers_as_alone(tokens));
  }
  hostile.join();
  ring(arena, 0, 1000, kLayer, 3);
  worker->request_stop();
  const auto last = wait_done(arena, 0, 1000, Clock::now() + std::chrono::seconds(30), default_spin());
  CHECK(last && (*last == 0 || *last == kShuttingDown));
  worker.reset();
  hostile_worker.stop();
}

}  // namespace

int main() {
  char folder[] = "/tmp/trimaran-gate-XXXXXX";
  CHECK(mkdtemp(folder) != nullptr);
  Bench bench;
  test_waiting_calls_become_one(bench);
  test_a_crowd(bench, folder);
  test_workers(bench, folder);
  for (const char* name : {"/arena", "/hostile"}) unlink((std::string(folder) + name).c_str());
  rmdir(folder);
  std::puts("the gate passed");
}
