#include "attention/norm.h"

#include <algorithm>
#include <cmath>

namespace trimaran {
namespace {

constexpr int64_t kRowsOfItem = 8;

}  // namespace

void rms_norm_row(const float* x, const float* weight, float eps, int64_t n, float* dst) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int lane = 0; lane < 8; ++lane) sums[lane] += static_cast<double>(x[i + lane]) * x[i + lane];
  }
  for (; i < n; ++i) sums[0] += static_cast<double>(x[i]) * x[i];
  double total = 0;
  for (const double sum : sums) total += sum;
  const auto factor = static_cast<float>(1 / std::sqrt(total / static_cast<double>(n) + eps));
  for (i = 0; i < n; ++i) dst[i] = x[i] * factor * weight[i];
}

void rms_norm(ThreadPool& pool, const float* x, const float* weight, float eps, int64_t rows, int64_t n,
              float* dst) {
  const int64_t items = (rows + kRowsOfItem - 1) / kRowsOfItem;
  pool.parallel_for(items, [&](int64_t item, int) {
    const int64_t last = std::min(rows, (item + 1) * kRowsOfItem);
    for (int64_t row = item * kRowsOfItem; row < last; ++row) {
      rms_norm_row(x + row * n, weight, eps, n, dst + row * n);
    }
  });
}

void store_entries(ThreadPool& pool, const NewEntries& entries, const CacheLayer& cache) {
  const int latent = cache.shape.latent, rope = cache.shape.rope;
  const int64_t items = (entries.n + kRowsOfItem - 1) / kRowsOfItem;
  pool.parallel_for(items, [&](int64_t item, int) {
    const int64_t last = std::min(entries.n, (item + 1) * kRowsOfItem);
    for (int64_t row = item * kRowsOfItem; row < last; ++row) {
      const float* src = entries.data + row * (latent + rope);
      const int pairs = rope / 2;
      float normalised[kLargestEntry];
      float rotated[kLargestEntry];
      rms_norm_row(src, entries.weight, entries.eps, latent, normalised);
      rotate(src + latent, entries.cos + row * pairs, entries.sin + row * pairs, pairs, rotated);
      encode_entry(cache.shape, normalised, rotated, cache.entry(entries.slots[row]));
    }
  });
}

}  // namespace trimaran
