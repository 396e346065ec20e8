// Runs attention on emulated matrix tiles (tests/emulated/): packing and products against their definition,
// to the bit, and whole attention calls against the portable reference, up to the rounding to bf16.
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "amx/attention.h"
#include "attention_support.h"
#include "generic/attention.h"
#include "quant/half.h"
#include "support.h"

namespace {

using namespace trimaran;

const AttentionTiles& tiles() { return amx::attention_tiles(); }

size_t size_of(int64_t n) { return static_cast<size_t>(n); }

std::vector<uint16_t> some_tiles(int64_t n) {
  return std::vector<uint16_t>(size_of(n * kTileWords), uint16_t{7});  // to be overwritten
}

// Of what lies in tiles: element (i, k) of a left side, (k, i) of a right one.
float left_at(const std::vector<uint16_t>& packed, int64_t depth, int64_t i, int64_t k) {
  const int64_t tile = i / kTileLines * depth + k / kTileDepth;
  return bf16_to_float(packed[size_of(tile * kTileWords + i % kTileLines * kTileDepth + k % kTileDepth)]);
}
float right_at(const std::vector<uint16_t>& packed, int64_t depth, int64_t k, int64_t i) {
  const int64_t tile = i / kTileLines * depth + k / kTileDepth;
  const int64_t line = k % kTileDepth / 2;
  return bf16_to_float(packed[size_of(tile * kTileWords + line * kTileDepth + 2 * (i % kTileLines) + k % 2)]);
}

float rounded(float x) { return bf16_to_float(float_to_bf16(x)); }

void test_packing(int n, int depth, std::mt19937& random) {
  const int64_t deep = tiles_of(depth, kTileDepth), wide = tiles_of(n, kTileLines);
  std::vector<uint16_t> left = some_tiles(wide * deep), right = left;
  const int64_t lds = depth + 3, ldr = n + 5;
  const auto rows = random_floats(size_of(n * lds - 3), random);
  const auto columns = random_floats(size_of(depth * ldr - 5), random);
  tiles().pack_left(rows.data(), lds, n, depth, left.data());
  tiles().pack_right(columns.data(), ldr, depth, n, right.data());
  for (int64_t i = 0; i < wide * kTileLines; ++i) {
    for (int64_t k = 0; k < deep * kTileDepth; ++k) {
      const bool inside = i < n && k < depth;
      CHECK(left_at(left, deep, i, k) == (inside ? rounded(rows[size_of(i * lds + k)]) : 0.0f));
      CHECK(right_at(right, deep, k, i) == (inside ? rounded(columns[size_of(k * ldr + i)]) : 0.0f));
    }
  }
}

// Whole numbers, so that no order of additions shows. Either side has more tiles than the product takes.
void test_product(int rows, int columns, int depth, bool accumulate, std::mt19937& random) {
  const int m = rows * kTileLines, n = columns * kTileLines, k = depth * kTileDepth;
  const auto whole = [&random](int64_t size) {
    std::vector<float> values(size_of(size));
    for (float& value : values) value = static_cast<float>(static_cast<int>(random() % 17) - 8);
    return values;
  };
  const int64_t left_depth = depth + 1, right_depth = depth + 2, ldc = n + 3;
  const auto a = whole(m * left_depth * kTileDepth), b = whole(right_depth * kTileDepth * n);
  std::vector<uint16_t> left = some_tiles(rows * left_depth), right = some_tiles(columns * right_depth);
  tiles().pack_left(a.data(), left_depth * kTileDepth, m, static_cast<int>(left_depth) * kTileDepth,
                    left.data());
  tiles().pack_right(b.data(), n, static_cast<int>(right_depth) * kTileDepth, n, right.data());
  const auto before = whole(m * ldc);
  std::vector<float> c = before;
  tiles().configure();
  tiles().multiply(
      {left.data(), left_depth, right.data(), right_depth, c.data(), ldc, rows, columns, depth, accumulate});
  tiles().release();
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < ldc; ++j) {
      float expected = accumulate || j >= n ? before[size_of(i * ldc + j)] : 0.0f;
      for (int64_t l = 0; j < n && l < k; ++l)
        expected += left_at(left, left_depth, i, l) * right_at(right, right_depth, l, j);
      CHECK(c[size_of(i * ldc + j)] == expected);
    }
  }
}

void test_scale(std::mt19937& random) {
  const auto before = random_floats(5 * kPanel, random), factors = random_floats(kPanel, random);
  std::vector<float> c = before;
  tiles().scale(c.data(), 4, factors.data());
  for (size_t i = 0; i < c.size(); ++i)
    CHECK(c[i] == (i < 4 * kPanel ? before[i] * factors[i % kPanel] : before[i]));
}

// Scores are small, so that what is seen is an error of a mean, not of a choice.
void test_attention() {
  ThreadPool pool(some_cpus(2));
  for (MlaDims dims : odd_shapes()) {
    dims.scale = 0.02f;
    for (const auto& batch : odd_batches()) {
      for (int format = 0; format < kEntryFormats; ++format) {
        const auto run = [&](const AttentionPrimitives& primitives, bool half, int64_t chunk) {
          return attend(primitives, pool, dims, static_cast<EntryFormat>(format), batch, false, half, chunk);
        };
        const auto got = run(amx::attention_primitives(), true, 1000);
        const double error = distance(got, run(generic::attention_primitives(), true, 1000));
        CHECK(error > 1e-5 && error < 1e-2);
        if (format != static_cast<int>(EntryFormat::bf16)) continue;
        CHECK(run(amx::attention_primitives(), true, 13) == got);  // in chunks: the same to the bit
        // Maps in float32 ask for exactness, and get it.
        const auto exact = run(generic::attention_primitives(), false, 1000);
        CHECK(distance(run(amx::attention_primitives(), false, 1000), exact) < 1e-5);
      }
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(5);
  for (const int n : {1, 8, 16, 24, 33}) {
    for (const int depth : {1, 2, 16, 31, 32, 70}) test_packing(n, depth, random);
  }
  for (const int rows : {1, 2, 3}) {
    for (const int columns : {1, 2, 3}) {
      for (const int depth : {1, 3}) test_product(rows, columns, depth, (rows + depth) % 2 == 0, random);
    }
  }
  test_scale(random);
  test_attention();
  std::puts("all emulated attention tiles passed");
}
