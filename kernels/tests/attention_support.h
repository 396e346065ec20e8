// Whole attention calls on random requests, for the test programs.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "attention/mla.h"
#include "attention/norm.h"

namespace trimaran {

inline std::vector<float> random_floats(size_t n, std::mt19937& random) {
  std::normal_distribution<float> distribution;
  std::vector<float> values(n);
  for (float& value : values) value = distribution(random);
  return values;
}

struct Request {
  int64_t length;
  int64_t position;
};

// One call with everything on heap blocks of exact size: queries, cache and result. Each request's tokens are
// cut into chunks.
inline std::vector<float> attend(const AttentionPrimitives& primitives, ThreadPool& pool, const MlaDims& dims,
                                 EntryFormat format, const std::vector<Request>& requests, bool absorbed,
                                 bool half, int64_t chunk = 1 << 20) {
  constexpr int kPage = 7;
  std::mt19937 random(11);
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  const auto k_b = random_floats(size(dims.heads) * size(dims.nope) * size(dims.latent), random);
  const auto v_b = random_floats(size(dims.heads) * size(dims.latent) * size(dims.value), random);
  const LatentMaps maps(dims, k_b.data(), v_b.data(), half);
  int64_t n_pages = 0, n_rows = 0;
  for (const Request& r : requests) {
    n_pages += (r.length + r.position + kPage - 1) / kPage;
    n_rows += r.length;
  }
  std::vector<int32_t> table(size(n_pages));
  std::iota(table.rbegin(), table.rend(), 0);
  const EntryShape shape{format, dims.latent, dims.rope};
  const std::unique_ptr<uint8_t[]> raw(new uint8_t[size(n_pages) * kPage * shape.bytes()]);
  const CacheLayer cache{raw.get(), shape, n_pages, kPage};

  const int64_t slots = n_pages * kPage;
  const auto kv = random_floats(size(slots) * size(dims.latent + dims.rope), random);
  const auto weight = random_floats(size(dims.latent), random);
  const auto slot_angles = random_floats(size(slots) * size(dims.rope / 2), random);
  std::vector<int32_t> all(size(slots));
  std::iota(all.begin(), all.end(), 0);
  store_entries(pool,
                {kv.data(), slots, weight.data(), 1e-6f, slot_angles.data(), slot_angles.data(), all.data()},
                cache);

  const auto q = random_floats(size(n_rows) * size(dims.heads) * size(dims.query_width()), random);
  const auto angles = random_floats(size(n_rows) * size(dims.rope / 2), random);
  std::vector<float> out(size(n_rows) * size(dims.heads) * size(dims.value), NAN);
  std::vector<Segment> segments;
  int64_t row = 0, page = 0;
  for (const Request& r : requests) {
    for (int64_t first = 0; first < r.length; first += chunk) {
      segments.push_back({row + first, std::min(chunk, r.length - first), r.position + first,
                          table.data() + page, absorbed});
    }
    row += r.length;
    page += (r.length + r.position + kPage - 1) / kPage;
  }
  Mla mla(pool, primitives, dims);
  mla.attend(maps, {q.data(), angles.data(), angles.data()}, cache, segments, out.data());
  return out;
}

// Of a from b, in norm.
inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    size += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / size);
}

// Sizes that fill no vector, and some that do.
inline std::vector<MlaDims> odd_shapes() {
  return {
      {1, 1, 2, 1, 1, 0.5f}, {3, 10, 6, 36, 13, 0.2f}, {4, 16, 8, 136, 16, 0.2f}, {40, 33, 10, 40, 9, 0.1f}};
}

// One token, nothing, several tiles of keys.
inline std::vector<std::vector<Request>> odd_batches() {
  return {{{1, 0}}, {{1, 170}, {37, 5}, {0, 3}}, {{70, 0}, {1, 64}}};
}

}  // namespace trimaran
