#include "attention/mla.h"

#include <string>

#include "runtime/status.h"

namespace trimaran {
namespace {

const MlaDims& checked(const MlaDims& dims) {
  const auto check = [](int value, const char* name) {
    if (value < 1) throw KernelError(std::string(name) + ": must be at least 1, is " + std::to_string(value));
  };
  check(dims.heads, "heads");
  check(dims.nope, "nope");
  check(dims.rope, "rope");
  check(dims.latent, "latent");
  check(dims.value, "value");
  if (dims.rope % 2 != 0) throw KernelError("rope: must be even, is " + std::to_string(dims.rope));
  return dims;
}

}  // namespace

Mla::Mla(ThreadPool& pool, const AttentionPrimitives& primitives, const MlaDims& dims)
    : dims_(checked(dims)), absorbed_(pool, primitives, dims), expanded_(pool, primitives, dims) {
  if (primitives.tiles != nullptr) tiled_ = std::make_unique<TiledAttention>(pool, primitives, dims);
}

void Mla::attend(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
                 const std::vector<Segment>& segments, float* out) {
  const std::lock_guard<std::mutex> lock(callers_);
  if (tiled_ != nullptr && maps.rounded()) {
    tiled_->run(maps, queries, cache, segments, out);
  } else {
    expanded_.run(maps, queries, cache, segments, out);
  }
  absorbed_.run(maps, queries, cache, segments, out);
}

}  // namespace trimaran
