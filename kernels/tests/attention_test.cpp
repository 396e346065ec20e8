// Runs the attention kernels on buffers of exactly the right size, under AddressSanitizer and
// UndefinedBehaviorSanitizer, and compares instruction sets; pytest checks the values against the definition.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "attention/gate.h"
#include "attention/norm.h"
#include "attention_support.h"
#include "isa/isa.h"
#include "support.h"

namespace {

using namespace trimaran;

// Where keys and weights are rounded to bf16, scores of some tens may be off by a tenth.
void compare(const std::vector<float>& result, const std::vector<float>& expected, bool rounds) {
  CHECK(!rounds || distance(result, expected) < 0.1);
  for (size_t i = 0; i < result.size() && !rounds; ++i) {
    CHECK(std::fabs(result[i] - expected[i]) <= 1e-3f * (1 + std::fabs(expected[i])));
  }
}

void test_attention() {
  ThreadPool pool(some_cpus(3));
  for (const MlaDims& dims : odd_shapes()) {
    for (const auto& batch : odd_batches()) {
      for (int format = 0; format < kEntryFormats; ++format) {
        for (int form = 0; form < 2; ++form) {
          const bool absorbed = form != 0, half = format % 2 == 0;
          std::vector<float> expected;
          std::vector<std::string> names = built_isas();
          for (auto name = names.rbegin(); name != names.rend(); ++name) {  // "generic" first
            const Primitives* primitives = select_isa(*name).primitives;
            if (primitives->name != *name) continue;
            const auto result = attend(*primitives->attention, pool, dims, static_cast<EntryFormat>(format),
                                       batch, absorbed, half);
            if (expected.empty()) expected = result;
            const bool rounds = primitives->attention->tiles != nullptr && half && !absorbed;
            compare(result, expected, rounds);
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
