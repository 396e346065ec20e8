#include "runtime/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <set>

#include "runtime/status.h"

namespace trimaran {
namespace {

// How long a waiting thread spins. Waking one that sleeps costs its waker 15 to 25 µs on a virtual machine
// and takes 25 to 50 µs; the loops of one layer follow each other faster than that.
constexpr std::chrono::microseconds kLinger{100};
constexpr int kPausesPerLook = 16;

// Bit of members_: no thread may join the loop any more.
constexpr uint32_t kClosed = 1u << 31;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void sleep_while_equal(std::atomic<uint32_t>& word, uint32_t value) {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Spins until done(), for kLinger at most; whether it was.
template <class Done>
bool spin_until(const Done& done) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + kLinger;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (done()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return false;
}

// Sleeps until done(). Who makes it true changes `word`, then calls wake_sleepers. Both sides are
// sequentially consistent: at least one of them sees the other.
template <class Done>
void sleep_until(std::atomic<uint32_t>& word, std::atomic<uint32_t>& sleepers, const Done& done) {
  sleepers.fetch_add(1);
  for (uint32_t value = word.load(); !done(value); value = word.load()) sleep_while_equal(word, value);
  sleepers.fetch_sub(1);
}

void wake_sleepers(std::atomic<uint32_t>& word, const std::atomic<uint32_t>& sleepers) {
  if (sleepers.load() != 0) wake(word);
}

void check_cpus(const std::vector<int>& cpus) {
  if (cpus.empty()) throw KernelError("cpus: need at least one CPU");
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);
  std::set<int> seen;
  for (const int cpu : cpus) {
    if (cpu < 0 || cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &allowed)) {
      throw KernelError("cpus: this process may not use CPU " + std::to_string(cpu));
    }
    if (!seen.insert(cpu).second) throw KernelError("cpus: CPU " + std::to_string(cpu) + " is named twice");
  }
}

// Signals are for the program's own threads, not for workers deep in a loop.
void block_signals() {
  sigset_t all;
  sigfillset(&all);
  // Those that an instruction of the thread itself raises would end the process if they were blocked.
  for (const int signal : {SIGBUS, SIGSEGV, SIGFPE, SIGILL}) sigdelset(&all, signal);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

void pin_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  // Best effort: the CPU may have been taken from this process since; then the thread runs unpinned.
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

}  // namespace

ThreadPool::ThreadPool(const std::vector<int>& cpus) : cpus_(cpus), members_(kClosed) {
  check_cpus(cpus);
  try {
    for (size_t i = 1; i < cpus.size(); ++i) {
      threads_.emplace_back(&ThreadPool::worker_main, this, static_cast<int>(i), cpus[i]);
    }
  } catch (const std::system_error& error) {
    stop();
    throw KernelError(std::string("cpus: cannot start a worker thread: ") + error.what());
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1);
  wake_sleepers(epoch_, idle_);
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(const Loop& loop) {
  const std::lock_guard<std::mutex> one_at_a_time(callers_);
  next_.store(0, std::memory_order_relaxed);
  if (threads_.empty() || loop.n_items <= 1) {
    work(loop, 0);
    return;
  }
  loop_ = &loop;
  members_.store(0, std::memory_order_release);
  resting_.store(false, std::memory_order_relaxed);
  epoch_.fetch_add(1);
  wake_sleepers(epoch_, idle_);
  work(loop, 0);
  close();
}

void ThreadPool::rest() { resting_.store(true, std::memory_order_relaxed); }

// Ends the loop: nobody can join any more, and all members have left.
void ThreadPool::close() {
  if (members_.fetch_or(kClosed, std::memory_order_acq_rel) == 0) return;
  if (spin_until([this] { return members_.load(std::memory_order_acquire) == kClosed; })) return;
  sleep_until(members_, closing_, [](uint32_t members) { return members == kClosed; });
}

// True if a loop was open; loop_ is then valid until leave().
bool ThreadPool::join() {
  uint32_t members = members_.load(std::memory_order_relaxed);
  while ((members & kClosed) == 0) {
    if (members_.compare_exchange_weak(members, members + 1, std::memory_order_acquire)) return true;
  }
  return false;
}

void ThreadPool::leave() {
  if (members_.fetch_sub(1) == kClosed + 1) wake_sleepers(members_, closing_);
}

void ThreadPool::work(const Loop& loop, int worker) {
  for (;;) {
    const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
    if (item >= loop.n_items) return;
    loop.call(loop.context, item, worker);
  }
}

// Returns the epoch that is no longer `seen`.
uint32_t ThreadPool::wait_for_work(uint32_t seen) {
  uint32_t now = seen;
  const auto changed = [&] { return (now = epoch_.load(std::memory_order_acquire)) != seen; };
  const auto spun = [&] { return changed() || resting_.load(std::memory_order_relaxed); };
  if (spin_until(spun) && now != seen) return now;
  sleep_until(epoch_, idle_, [&](uint32_t value) { return (now = value) != seen; });
  return now;
}

void ThreadPool::worker_main(int worker, int cpu) {
  block_signals();
  pin_to(cpu);
  uint32_t seen = 0;
  for (;;) {
    seen = wait_for_work(seen);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (!join()) continue;
    work(*loop_, worker);
    leave();
  }
}

}  // namespace trimaran
