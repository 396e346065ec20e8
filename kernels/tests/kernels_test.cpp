// Runs every kernel on buffers of exactly the right size, to be compiled with AddressSanitizer and
// UndefinedBehaviorSanitizer: reads past a row, misaligned access or a data race with the pool's end show
// here. Values are checked against the portable reference; pytest checks them against the format.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "isa/isa.h"
#include "packed/pack.h"
#include "quant/half.h"
#include "runtime/engine.h"
#include "runtime/linear.h"
#include "runtime/read_memory.h"
#include "runtime/route.h"
#include "support.h"

namespace {

using namespace trimaran;

std::vector<const Primitives*> implementations() {
  std::vector<const Primitives*> all;
  for (const std::string& name : built_isas()) {
    const Primitives* primitives = select_isa(name).primitives;
    if (primitives->name == name) all.push_back(primitives);
  }
  return all;
}

// A heap block of exactly `size` bytes at an odd address, so that alignment assumptions and overruns are
// caught.
class Bytes {
 public:
  Bytes(size_t size, std::mt19937& random) : block_(new uint8_t[size + 1]), size_(size) {
    for (size_t i = 0; i < size; ++i) block_[i + 1] = static_cast<uint8_t>(random());
  }
  const uint8_t* data() const { return block_.get() + 1; }
  size_t size() const { return size_; }

 private:
  std::unique_ptr<uint8_t[]> block_;
  size_t size_;
};

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || bits_from_float(a) == bits_from_float(b);
}

void test_decoders_agree(std::mt19937& random) {
  const Primitives* reference = select_isa("generic").primitives;
  size_t count = 0;
  const TypeTraits* types = all_types(&count);
  for (size_t i = 0; i < count; ++i) {
    const int64_t n = 5 * types[i].block_size;
    const Bytes raw(types[i].row_bytes(n), random);
    std::vector<float> expected(static_cast<size_t>(n)), got(static_cast<size_t>(n));
    reference->decoder(types[i].type)(raw.data(), n, expected.data());
    for (const Primitives* primitives : implementations()) {
      primitives->decoder(types[i].type)(raw.data(), n, got.data());
      for (size_t j = 0; j < got.size(); ++j) CHECK(same(got[j], expected[j]));
    }
  }
}

std::vector<float> random_floats(size_t n, std::mt19937& random) {
  std::uniform_real_distribution<float> distribution(-1, 1);
  std::vector<float> values(n);
  for (float& value : values) value = distribution(random);
  return values;
}

// Random bits may be NaN: only memory is checked.
void test_linear_stays_in_bounds(ThreadPool& pool, std::mt19937& random) {
  size_t count = 0;
  const TypeTraits* types = all_types(&count);
  for (size_t i = 0; i < count; ++i) {
    const int64_t columns = types[i].block_size == 1 ? 37 : 3 * types[i].block_size;
    for (const int64_t rows : {1, 16, 19}) {
      const Bytes raw(types[i].row_bytes(columns) * static_cast<size_t>(rows), random);
      for (const int64_t n : {0, 1, 5, 33}) {
        const std::vector<float> x = random_floats(static_cast<size_t>(n * columns), random);
        std::vector<float> out(static_cast<size_t>(n * rows));
        for (const Primitives* primitives : implementations()) {
          Linear(pool, *primitives, {types[i].type, raw.data(), raw.size()}, rows, columns)
              .multiply(x.data(), n, out.data());
        }
      }
    }
  }
}

// Packed weights of random bits give the same results on every instruction set.
void test_packed_kernels_agree(ThreadPool& pool, std::mt19937& random) {
  const Primitives* reference = select_isa("generic").primitives;
  for_each_format([&](auto tag) {
    const Format& format = decltype(tag)::format;
    const TypeTraits& traits = *find_type(static_cast<int32_t>(format.type));
    const int64_t rows = 19, columns = 3 * traits.block_size, n = 7;
    const Bytes raw(traits.row_bytes(columns) * static_cast<size_t>(rows), random);
    std::vector<uint8_t> packed(packed_bytes(format, rows, columns));
    pack(pool, format, view_rows({format.type, raw.data(), raw.size()}, rows, columns, "raw"), packed.data());
    const std::vector<float> x = random_floats(static_cast<size_t>(n * columns), random);
    std::vector<float> expected(static_cast<size_t>(n * rows)), got(expected.size());
    const Matrix matrix{format.type, packed.data(), packed.size(), true};
    Linear(pool, *reference, matrix, rows, columns).multiply(x.data(), n, expected.data());
    for (const Primitives* primitives : implementations()) {
      Linear(pool, *primitives, matrix, rows, columns).multiply(x.data(), n, got.data());
      for (size_t i = 0; i < got.size(); ++i) CHECK(same(got[i], expected[i]));
    }
  });
}

std::vector<uint8_t> as_bytes(const std::vector<float>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

void test_engine(ThreadPool& pool, const Primitives& primitives, std::mt19937& random) {
  constexpr int kHidden = 19, kIntermediate = 21, kExperts = 5, kTopK = 3, kTokens = 40;
  constexpr size_t kWeights = static_cast<size_t>(kExperts) * kHidden * kIntermediate;
  const auto gate = as_bytes(random_floats(kWeights, random));
  const auto up = as_bytes(random_floats(kWeights, random));
  const auto down = as_bytes(random_floats(kWeights, random));
  ExpertEngine engine(pool, primitives, {kHidden, kIntermediate, kExperts, kTopK, kTokens});
  const auto matrix = [](const std::vector<uint8_t>& bytes) {
    return Matrix{GgmlType::F32, bytes.data(), bytes.size()};
  };
  engine.add_layer(7, {matrix(gate), matrix(up), matrix(down), 0, kExperts});
  const std::vector<float> x = random_floats(kTokens * kHidden, random);
  const std::vector<float> weights = random_floats(kTokens * kTopK, random);
  std::vector<int32_t> ids(kTokens * kTopK);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % kExperts);
  std::vector<float> y(x.size());
  for (const int n : {0, 1, kTokens}) {
    CHECK(engine.forward(7, n, x.data(), ids.data(), weights.data(), y.data(), DType::f32) == Status::ok);
  }
  for (const float value : y) CHECK(std::isfinite(value));
  CHECK(engine.forward(6, 1, x.data(), ids.data(), weights.data(), y.data(), DType::f32) ==
        Status::bad_layer);
  CHECK(engine.forward(7, kTokens + 1, x.data(), ids.data(), weights.data(), y.data(), DType::f32) ==
        Status::bad_token_count);
  std::fill(ids.begin(), ids.begin() + kTopK, kSkipped);
  std::vector<float> weighted = weights;
  weighted[0] = std::numeric_limits<float>::quiet_NaN();
  CHECK(engine.forward(7, kTokens, x.data(), ids.data(), weighted.data(), y.data(), DType::f32) ==
        Status::ok);
  CHECK(std::all_of(y.begin(), y.begin() + kHidden, [](float value) { return value == 0.0f; }));
  ids[4] = kExperts;
  CHECK(engine.forward(7, kTokens, x.data(), ids.data(), weights.data(), y.data(), DType::f32) ==
        Status::bad_expert_id);
}

void test_pools_come_and_go() {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(some_cpus());
    std::atomic<int64_t> sum{0};
    pool.parallel_for(100, [&](int64_t item, int) { sum += item; });
    CHECK(sum == 4950);
  }
}

}  // namespace

int main() {
  std::mt19937 random(7);
  ThreadPool pool(some_cpus());
  test_decoders_agree(random);
  test_linear_stays_in_bounds(pool, random);
  test_packed_kernels_agree(pool, random);
  for (const Primitives* primitives : implementations()) test_engine(pool, *primitives, random);
  test_pools_come_and_go();
  std::vector<uint8_t> memory(1 << 16, 1);
  CHECK(read_memory(pool, memory.data(), memory.size()) == 0);
  std::puts("all kernels passed");
}
