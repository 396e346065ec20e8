#include "runtime/read_memory.h"

#include <algorithm>
#include <atomic>

namespace trimaran {
namespace {

constexpr size_t kChunkWords = size_t{1} << 17;  // 1 MiB: a work item
constexpr size_t kStreams = 8;                   // independent sums, so that the loop can be vectorised

uint64_t xor_words(const uint64_t* words, size_t n) {
  uint64_t sums[kStreams] = {};
  size_t i = 0;
  for (; i + kStreams <= n; i += kStreams) {
    for (size_t j = 0; j < kStreams; ++j) sums[j] ^= words[i + j];
  }
  for (; i < n; ++i) sums[0] ^= words[i];
  for (size_t j = 1; j < kStreams; ++j) sums[0] ^= sums[j];
  return sums[0];
}

}  // namespace

uint64_t read_memory(ThreadPool& pool, const uint8_t* data, size_t size) {
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  const size_t n = size / sizeof(uint64_t);
  std::atomic<uint64_t> total{0};
  pool.parallel_for(static_cast<int64_t>((n + kChunkWords - 1) / kChunkWords), [&](int64_t item, int) {
    const size_t first = static_cast<size_t>(item) * kChunkWords;
    total.fetch_xor(xor_words(words + first, std::min(kChunkWords, n - first)), std::memory_order_relaxed);
  });
  return total;
}

}  // namespace trimaran
