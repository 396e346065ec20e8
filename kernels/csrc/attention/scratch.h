// Float scratch memory on cache-line borders, kept from call to call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trimaran {

class Scratch {
 public:
  // At least n floats, of any value; what was there may be lost.
  float* at_least(size_t n) {
    const size_t lines = (n + kFloats - 1) / kFloats;
    if (lines_.size() < lines) lines_ = std::vector<Line>(lines);
    return lines_.front().values;
  }
  float* data() { return lines_.front().values; }

 private:
  static constexpr size_t kFloats = 16;
  struct alignas(64) Line {
    float values[kFloats];
  };
  std::vector<Line> lines_{1};
};

// Hands out parts of a piece of memory, each on a cache-line border; without memory it only counts.
class Carver {
 public:
  explicit Carver(float* memory) : memory_(memory) {}
  float* take(int64_t n) {
    float* part = memory_ == nullptr ? nullptr : memory_ + taken_;
    taken_ += (n + 15) / 16 * 16;
    return part;
  }
  size_t taken() const { return static_cast<size_t>(taken_); }

 private:
  float* memory_;
  int64_t taken_ = 0;
};

}  // namespace trimaran
