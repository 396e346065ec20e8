// Root-mean-square normalisation, and the writing of normalised latents into the cache.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cache_layer.h"
#include "runtime/thread_pool.h"

namespace trimaran {

// dst = x / sqrt(mean(x²) + eps) · weight for one row of n values; the sum is taken in double precision.
void rms_norm_row(const float* x, const float* weight, float eps, int64_t n, float* dst);

// The same for rows of x: [rows, n]; dst may be x.
void rms_norm(ThreadPool& pool, const float* x, const float* weight, float eps, int64_t rows, int64_t n,
              float* dst);

// Most values of an entry's latent, and of its rotated key.
constexpr int kLargestEntry = 4096;

// What a layer computes of its tokens for the cache: [n, latent + rope], neither normalised nor rotated.
struct NewEntries {
  const float* data;
  int64_t n;
  const float* weight;  // [latent], of the norm
  float eps;
  const float* cos;  // [n, rope / 2]
  const float* sin;
  const int32_t* slots;  // [n]: page · page size + offset
};

// Normalises the latents, rotates the keys and stores both.
void store_entries(ThreadPool& pool, const NewEntries& entries, const CacheLayer& cache);

}  // namespace trimaran
