// Pinned worker threads that sleep when idle.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace trimaran {

// Runs loops in parallel on one thread per given CPU. The calling thread is worker 0 and is never pinned;
// each further CPU gets one pinned thread. Waiting threads spin for 100 µs, since the next loop mostly
// follows soon, then sleep in a futex: an idle pool costs nothing. Who hands the cores to another process
// calls rest(). A loop does not wait for a thread that has not joined it by the time its items are handed
// out: a CPU busy with another process delays nobody. Loops from several callers run one after another. Loop
// bodies must neither throw nor start loops.
class ThreadPool {
 public:
  // Throws KernelError if `cpus` is empty, repeats a CPU or names one that this process may not use.
  explicit ThreadPool(const std::vector<int>& cpus);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }
  const std::vector<int>& cpus() const { return cpus_; }

  // Calls body(item, worker) once for each item in [0, n_items); items are handed out in ascending order to
  // whichever worker is free, worker in [0, size()). Returns when all are done.
  template <class Body>
  void parallel_for(int64_t n_items, const Body& body) {
    const Loop loop{[](const void* context, int64_t item, int worker) {
                      (*static_cast<const Body*>(context))(item, worker);
                    },
                    &body, n_items};
    run(loop);
  }

  // No loop follows soon: threads that wait for one sleep at once.
  void rest();

 private:
  struct Loop {
    void (*call)(const void* context, int64_t item, int worker);
    const void* context;
    int64_t n_items;
  };

  void run(const Loop& loop);
  void work(const Loop& loop, int worker);
  bool join();
  void leave();
  void close();
  uint32_t wait_for_work(uint32_t seen);
  void worker_main(int worker, int cpu);
  void stop();

  const std::vector<int> cpus_;
  std::mutex callers_;                          // one loop at a time
  const Loop* loop_ = nullptr;                  // valid while members_ is not kClosed
  alignas(64) std::atomic<uint32_t> epoch_{0};  // futex: grows when there is work, or at the end
  std::atomic<bool> resting_{false};            // nobody shall spin for the next epoch
  std::atomic<uint32_t> idle_{0};               // threads that sleep until the next epoch, or are about to
  alignas(64) std::atomic<uint32_t> members_;   // futex: threads in the open loop; a top bit closes it
  std::atomic<uint32_t> closing_{0};            // whether the caller sleeps until all members have left
  alignas(64) std::atomic<int64_t> next_{0};    // next item to hand out
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

}  // namespace trimaran
