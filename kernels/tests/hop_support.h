// What the tests of the hop share: an engine, calls for it, and arenas.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "hop/arena.h"
#include "hop/call_gate.h"
#include "isa/isa.h"
#include "support.h"

namespace trimaran::hop {

constexpr int kHidden = 32, kWide = 40, kExperts = 5, kTopK = 2, kMost = 16, kLayer = 3;

// A call with memory of its own.
struct Tokens {
  Tokens(int n, unsigned seed) : x(n * kHidden), y(n * kHidden), ids(n * kTopK), weights(n * kTopK) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (float& value : x) value = uniform(random);
    for (float& value : weights) value = uniform(random);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % kExperts);
  }
  Call call(int32_t layer = kLayer) {
    return {
        layer,     static_cast<uint32_t>(ids.size() / kTopK), x.data(), ids.data(), weights.data(), y.data(),
        DType::f32};
  }
  std::vector<float> x, y;
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

// An engine of one layer with random weights.
class Bench {
 public:
  Bench() : pool(some_cpus()), engine(pool, *select_isa("auto").primitives, dims()) {
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    weights_.resize(3 * kExperts * kHidden * kWide);
    for (float& value : weights_) value = uniform(random);
    const size_t bytes = weights_.size() / 3 * sizeof(float);
    const auto* data = reinterpret_cast<const uint8_t*>(weights_.data());
    const auto matrix = [&](size_t i) { return Matrix{GgmlType::F32, data + i * bytes, bytes, false}; };
    engine.add_layer(kLayer, {matrix(0), matrix(1), matrix(2), 0, kExperts});
  }
  static EngineDims dims() { return {kHidden, kWide, kExperts, kTopK, kMost}; }

  bool answers_as_alone(Tokens& tokens) {
    const std::vector<float> got = tokens.y;
    CallGate gate(engine);
    CHECK(gate.run(tokens.call(), std::numeric_limits<uint32_t>::max()) == 0);
    return std::memcmp(got.data(), tokens.y.data(), got.size() * sizeof(float)) == 0;
  }

  ThreadPool pool;
  ExpertEngine engine;

 private:
  std::vector<float> weights_;
};

// An arena as the attention service makes one.
inline std::string make_arena(const std::string& path, const ArenaDims& dims) {
  const ArenaLayout layout = arena_layout(dims);
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  CHECK(fd >= 0 && ftruncate(fd, static_cast<off_t>(layout.file_bytes)) == 0);
  struct {
    char magic[8];
    uint32_t fields[6];
    uint64_t sizes[2];
  } header{
      {},
      {kVersion, static_cast<uint32_t>(dims.dtype), dims.hidden, dims.top_k, dims.max_tokens, dims.n_slots},
      {layout.slot_stride, layout.file_bytes}};
  std::memcpy(header.magic, kMagic, sizeof header.magic);
  CHECK(pwrite(fd, &header, sizeof header, 0) == static_cast<ssize_t>(sizeof header));
  close(fd);
  return path;
}

}  // namespace trimaran::hop
