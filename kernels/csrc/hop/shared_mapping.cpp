#include "hop/shared_mapping.h"

#include <signal.h>
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <string>

#include "runtime/status.h"

namespace trimaran::hop {
namespace {

// What the handler looks at; a place is free while `bytes` is 0.
struct Place {
  std::atomic<uint8_t*> data;
  std::atomic<size_t> bytes;
  std::atomic<bool> lost;
};

// A signal belongs to the process, so its handler's table is one of the few things that must be global.
Place places[256];
std::mutex changes;
std::once_flag is_known;
struct sigaction previous;

bool replace_if_ours(const uint8_t* address) {
  for (Place& place : places) {
    uint8_t* data = place.data.load();
    const size_t bytes = place.bytes.load();
    if (bytes == 0 || address < data || address >= data + bytes) continue;
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(data, bytes, PROT_READ | PROT_WRITE, kFlags, -1, 0) == MAP_FAILED) return false;
    place.lost.store(true);
    return true;
  }
  return false;
}

void on_bus_error(int, siginfo_t* info, void*) {
  const int saved = errno;
  const bool is_fault = info->si_code > 0;  // not sent by a process, which leaves no address
  if (!is_fault || !replace_if_ours(static_cast<const uint8_t*>(info->si_addr))) {
    // Who handled the signal before us does so when the instruction is tried again, or the signal sent again.
    sigaction(SIGBUS, &previous, nullptr);
    if (!is_fault) raise(SIGBUS);
  }
  errno = saved;
}

// Each time, since others may have put a handler of their own in its place. Only what was there before the
// first time is handed back to: a later one may hand back to us, in a circle.
void install_handler() {
  struct sigaction present{};
  sigaction(SIGBUS, nullptr, &present);
  if ((present.sa_flags & SA_SIGINFO) != 0 && present.sa_sigaction == on_bus_error) return;
  struct sigaction ours{};
  ours.sa_sigaction = on_bus_error;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  std::call_once(is_known, [&present] { previous = present; });
  sigaction(SIGBUS, &ours, nullptr);
}

int take_place(uint8_t* data, size_t bytes) {
  const std::lock_guard<std::mutex> lock(changes);
  install_handler();
  int index = 0;
  for (Place& place : places) {
    if (place.bytes.load() == 0) {
      place.data.store(data);
      place.lost.store(false);
      place.bytes.store(bytes);
      return index;
    }
    ++index;
  }
  return -1;
}

}  // namespace

SharedMapping::SharedMapping(int fd, size_t bytes) : data_(nullptr), bytes_(bytes), place_(-1) {
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) throw KernelError(std::strerror(errno));
  data_ = static_cast<uint8_t*>(mapped);
  place_ = take_place(data_, bytes);
  if (place_ >= 0) return;
  munmap(data_, bytes);
  throw KernelError("too many mappings");
}

SharedMapping::~SharedMapping() {
  places[place_].bytes.store(0);
  munmap(data_, bytes_);
}

bool SharedMapping::lost() const { return places[place_].lost.load(std::memory_order_relaxed); }

}  // namespace trimaran::hop
