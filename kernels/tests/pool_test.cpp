// The thread pool under several callers, to be compiled with ThreadSanitizer: what a loop's bodies wrote, in
// plain memory, must be seen by its caller, and by the bodies of the next loop on whichever thread they run.
#include "runtime/thread_pool.h"

#include <atomic>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "support.h"

namespace {

using trimaran::some_cpus;
using trimaran::ThreadPool;

constexpr size_t kCpus = 3;

// Loops of every small size, and of more items than there could be threads.
void test_each_item_once() {
  ThreadPool pool(some_cpus(kCpus));
  std::vector<int> seen;
  for (const int64_t n : {0, 1, 2, 3, 5, 17, 1000}) {
    for (int turn = 0; turn < 50; ++turn) {
      seen.assign(static_cast<size_t>(n), 0);
      pool.parallel_for(n, [&](int64_t item, int worker) {
        CHECK(worker >= 0 && worker < pool.size());
        seen[static_cast<size_t>(item)] += 1;
      });
      for (const int count : seen) CHECK(count == 1);
    }
  }
}

// A worker's number is its own: memory that is kept by it needs no lock.
void test_workers_have_memory_of_their_own() {
  ThreadPool pool(some_cpus(kCpus));
  std::vector<int64_t> sums(static_cast<size_t>(pool.size()), 0);
  for (int turn = 0; turn < 300; ++turn) {
    pool.parallel_for(40, [&](int64_t item, int worker) { sums[static_cast<size_t>(worker)] += item; });
  }
  int64_t total = 0;
  for (const int64_t sum : sums) total += sum;
  CHECK(total == 300 * (39 * 40 / 2));
}

// Several threads share a pool, each with chains of loops that read what the one before wrote; somebody sends
// the threads to sleep at any moment.
void test_several_callers() {
  ThreadPool pool(some_cpus(kCpus));
  std::atomic<bool> done{false};
  std::thread rester([&] {
    while (!done) {
      pool.rest();
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&pool, caller] {
      constexpr int64_t kItems = 12;
      std::vector<int64_t> chain(kItems, caller);
      for (int turn = 0; turn < 150; ++turn) {
        pool.parallel_for(kItems, [&](int64_t item, int) { chain[static_cast<size_t>(item)] += 1; });
        if (turn % 50 == 49) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // let threads sleep
      }
      for (const int64_t value : chain) CHECK(value == caller + 150);
    });
  }
  for (std::thread& caller : callers) caller.join();
  done = true;
  rester.join();
}

// Destroyed at once, after a loop, and while its threads sleep.
void test_pools_end_at_any_moment() {
  for (int turn = 0; turn < 90; ++turn) {
    ThreadPool pool(some_cpus(kCpus));
    int64_t items[8] = {};
    if (turn % 3 != 0) pool.parallel_for(8, [&](int64_t item, int) { items[item] = item; });
    if (turn % 3 == 2) std::this_thread::sleep_for(std::chrono::microseconds(300));
    CHECK(turn % 3 == 0 || items[7] == 7);
  }
}

}  // namespace

int main() {
  test_each_item_once();
  test_workers_have_memory_of_their_own();
  test_several_callers();
  test_pools_end_at_any_moment();
  std::puts("the pool passed");
}
