// When the latest calls were computed, for whoever draws a timeline.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <vector>

namespace trimaran::hop {

// Times are nanoseconds of the monotonic clock, which all processes of a host share.
struct CallSpan {
  int32_t layer;
  uint32_t n_tokens;
  int64_t start_ns;
  int64_t end_ns;
};

// Keeps the last calls in a ring, some hundred steps of a large model. Always on: a call takes longer by the
// time of one uncontended lock. Any thread may call.
class CallLog {
 public:
  static constexpr size_t kKept = 8192;

  void add(const CallSpan& span) {
    const std::lock_guard<std::mutex> lock(mutex_);
    spans_[n_added_++ % kKept] = span;
  }

  // Those of the kept calls that ended at `start_ns` or later, oldest first.
  std::vector<CallSpan> since(int64_t start_ns) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<CallSpan> found;
    for (uint64_t i = n_added_ > kKept ? n_added_ - kKept : 0; i < n_added_; ++i) {
      const CallSpan& span = spans_[i % kKept];
      if (span.end_ns >= start_ns) found.push_back(span);
    }
    return found;
  }

 private:
  mutable std::mutex mutex_;
  std::array<CallSpan, kKept> spans_{};
  uint64_t n_added_ = 0;
};

}  // namespace trimaran::hop
