// Runs the attention kernels on buffers of exactly the right size, under AddressSanitizer and
// UndefinedBehaviorSanitizer, and compares instruction sets; pytest checks the values against the definition.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "attention/gate.h"
#include "attention/mla.h"
#include "attention/norm.h"
#include "isa/isa.h"
#include "support.h"

namespace {

using namespace trimaran;

std::vector<float> random_floats(size_t n, std::mt19937& random) {
  std::normal_distribution<float> distribution;
  std::vector<float> values(n);
  for (float& value : values) value = distribution(random);
  return values;
}

struct Request {
  int64_t length;
  int64_t position;
};

// One call with everything on heap blocks of exact size.
std::vector<float> attend(const AttentionPrimitives& primitives, ThreadPool& pool, const MlaDims& dims,
                          EntryFormat format, const std::vector<Request>& requests, bool absorbed,
                          bool half) {
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
    segments.push_back({row, r.length, r.position, table.data() + page, absorbed});
    row += r.length;
    page += (r.length + r.position + kPage - 1) / kPage;
  }
  Mla mla(pool, primitives, dims);
  mla.attend(maps, {q.data(), angles.data(), angles.data()}, cache, segments, out.data());
  return out;
}

void test_attention() {
  ThreadPool pool(some_cpus(3));
  const std::vector<MlaDims> shapes = {
      {1, 1, 2, 1, 1, 0.5f}, {3, 10, 6, 36, 13, 0.2f}, {4, 16, 8, 136, 16, 0.2f}, {40, 33, 10, 40, 9, 0.1f}};
  const std::vector<std::vector<Request>> batches = {
      {{1, 0}}, {{1, 170}, {37, 5}, {0, 3}}, {{70, 0}, {1, 64}}};
  for (const MlaDims& dims : shapes) {
    for (const auto& batch : batches) {
      for (int format = 0; format < kEntryFormats; ++format) {
        for (int form = 0; form < 2; ++form) {
          const bool absorbed = form != 0, half = format % 2 == 0;
          std::vector<std::vector<float>> results;
          for (const std::string& name : built_isas()) {
            const Primitives* primitives = select_isa(name).primitives;
            if (primitives->name != name) continue;
            results.push_back(attend(*primitives->attention, pool, dims, static_cast<EntryFormat>(format),
                                     batch, absorbed, half));
          }
          for (const auto& result : results) {
            for (size_t i = 0; i < result.size(); ++i) {
              CHECK(std::fabs(result[i] - results[0][i]) <= 1e-3f * (1 + std::fabs(results[0][i])));
            }
          }
        }
      }
    }
  }
}

void test_norm_and_gate() {
  ThreadPool pool(some_cpus(3));
  std::mt19937 random(3);
  const auto x = random_floats(5 * 13, random);
  const auto weight = random_floats(13, random);
  std::vector<float> out(5 * 13);
  rms_norm(pool, x.data(), weight.data(), 1e-6f, 5, 13, out.data());
  const GateSpec spec{12, 3, false, 4, 2, 2, true, 2.5f};
  check_gate(spec);
  const auto logits = random_floats(20 * 12, random);
  const auto bias = random_floats(12, random);
  std::vector<int32_t> ids(20 * 3);
  std::vector<float> weights(20 * 3);
  route_tokens(pool, spec, logits.data(), bias.data(), 20, ids.data(), weights.data());
  for (size_t t = 0; t < 20; ++t) {
    float sum = 0;
    for (size_t i = 0; i < 3; ++i) sum += weights[3 * t + i];
    CHECK(std::fabs(sum - 2.5f) < 1e-4f);
    CHECK(ids[3 * t] != ids[3 * t + 1] && ids[3 * t + 1] != ids[3 * t + 2] && ids[3 * t] != ids[3 * t + 2]);
  }
}

void test_fp8_codes() {
  for (int code = 0; code < 256; ++code) {
    const float value = fp8_to_float(static_cast<uint8_t>(code));
    if (std::isnan(value)) continue;
    CHECK(float_to_fp8(value) == code);
    const float next = fp8_to_float(static_cast<uint8_t>(code + 1));
    if ((code & 0x7f) >= 0x7e) continue;
    const float middle = (value + next) / 2;  // goes to the even one
    CHECK(float_to_fp8(middle) == (code % 2 == 0 ? code : code + 1));
  }
}

}  // namespace

int main() {
  test_fp8_codes();
  test_norm_and_gate();
  test_attention();
  std::puts("ok");
}
