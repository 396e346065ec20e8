// Runs the AVX-512 attention primitives on emulated instructions (tests/emulated/): each by itself against
// its definition, products and decoded entries to the bit, and whole attention calls against the portable
// reference.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "attention_support.h"
#include "avx512/attention.h"
#include "generic/attention.h"
#include "quant/half.h"
#include "support.h"

namespace {

using namespace trimaran;

const AttentionPrimitives& wide() { return avx512::attention_primitives(); }

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || bits_from_float(a) == bits_from_float(b);
}

size_t size_of(int64_t n) { return static_cast<size_t>(n); }

// C has two columns more than the product, which must stay as they are.
void test_product(int m, int n, int64_t k, bool transposed, bool accumulate, std::mt19937& random) {
  const int ldc = n + 2;
  const auto a = random_floats(size_of(m * k), random);
  const auto b = random_floats(size_of(k * n), random);
  std::vector<uint16_t> half(b.size());
  std::transform(b.begin(), b.end(), half.begin(), float_to_f16);
  const auto before = random_floats(size_of(m * ldc), random);
  for (const bool halves : {false, true}) {
    std::vector<float> c = before;
    const Product product{a.data(), transposed ? 1 : k, transposed ? m : 1, n, c.data(), ldc, m, n,
                          k,        accumulate};
    if (halves) {
      wide().multiply_half(product, half.data());
    } else {
      wide().multiply(product, b.data());
    }
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < ldc; ++j) {
        const size_t at = size_of(i * ldc + j);
        float expected = accumulate || j >= n ? before[at] : 0.0f;
        for (int64_t l = 0; j < n && l < k; ++l) {
          const size_t right = size_of(l * n + j);
          expected = std::fma(a[size_of(i * product.a_row + l * product.a_column)],
                              halves ? f16_to_float(half[right]) : b[right], expected);
        }
        CHECK(same(c[at], expected));
      }
    }
  }
}

void test_products(std::mt19937& random) {
  for (const int n : {8, 16, 24, 32}) {
    for (const int m : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33}) {
      test_product(m, n, 5, m % 2 == 0, m % 3 == 0, random);
    }
    for (const int64_t k : {1, 127, 128, 129, 300}) test_product(13, n, k, k % 2 == 0, k != 1, random);
    test_product(64, n, 3, false, false, random);
    test_product(0, n, 3, false, false, random);
  }
}

// Blocks of n columns, and the same elements as floats. Some scales are none that a file should have.
std::vector<uint8_t> random_codes(int64_t blocks, int n, std::mt19937& random, std::vector<float>& values) {
  std::vector<uint8_t> codes(size_of(blocks * (kCodeRows + 2) * n));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
  for (int64_t block = 0; block < blocks; ++block) {
    const uint8_t* first = codes.data() + block * (kCodeRows + 2) * n;
    for (int i = 0; i < kCodeRows * n; ++i) {
      values.push_back(static_cast<float>(static_cast<int8_t>(first[i])) *
                       f16_to_float(load_u16(first + kCodeRows * n + 2 * (i % n))));
    }
  }
  return codes;
}

void test_codes(int m, int n, int64_t blocks, bool accumulate, std::mt19937& random) {
  std::vector<float> expected;
  const auto codes = random_codes(blocks, n, random, expected);
  std::vector<float> got(expected.size());
  wide().widen_codes(codes.data(), blocks, n, got.data());
  for (size_t i = 0; i < got.size(); ++i) CHECK(same(got[i], expected[i]));

  const int64_t k = blocks * kCodeRows;
  const auto a = random_floats(size_of(m * k), random);
  const auto before = random_floats(size_of(m * (n + 2)), random);
  std::vector<float> c = before, by_floats = before;
  Product product{a.data(), k, 1, n, c.data(), n + 2, m, n, k, accumulate};
  wide().multiply_codes(product, codes.data());
  product.c = by_floats.data();
  wide().multiply(product, expected.data());
  for (size_t i = 0; i < c.size(); ++i) CHECK(same(c[i], by_floats[i]));
}

void test_blocks_of_codes(std::mt19937& random) {
  for (const int n : {8, 16, 24, 32}) {
    for (const int m : {0, 1, 2, 3, 4, 5, 7, 8, 9}) test_codes(m, n, 1 + m % 3, m % 2 == 0, random);
  }
}

void test_widen(std::mt19937& random) {
  for (const int64_t n : {8, 16, 24, 32, 40}) {
    std::vector<uint16_t> src(size_of(n));
    for (uint16_t& half : src) half = static_cast<uint16_t>(random());
    std::vector<float> dst(src.size());
    wide().widen_half(src.data(), n, dst.data());
    for (size_t i = 0; i < src.size(); ++i) CHECK(same(dst[i], f16_to_float(src[i])));
  }
}

void test_transpose(std::mt19937& random) {
  for (const int64_t rows : {8, 16, 24, 32}) {
    for (const int64_t columns : {8, 16, 40}) {
      const int64_t lds = columns + 3, ldd = rows + 5;
      const auto src = random_floats(size_of(rows * lds - 3), random);
      std::vector<float> dst(size_of(columns * ldd), 7.0f);
      wide().transpose(src.data(), lds, rows, columns, dst.data(), ldd);
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t r = 0; r < ldd; ++r) {
          CHECK(dst[size_of(c * ldd + r)] == (r < rows ? src[size_of(r * lds + c)] : 7.0f));
        }
      }
    }
  }
}

void test_entries(std::mt19937& random) {
  for (int format = 0; format < kEntryFormats; ++format) {
    for (const auto& [latent, rope] :
         std::vector<std::pair<int, int>>{{8, 8}, {16, 24}, {136, 8}, {520, 64}, {13, 6}}) {
      for (const float special : {0.0f, 1e-30f, INFINITY, NAN}) {
        const EntryShape shape{static_cast<EntryFormat>(format), latent, rope};
        auto values = random_floats(size_of(latent + rope), random);
        values[3] = special;
        const std::unique_ptr<uint8_t[]> entry(new uint8_t[shape.bytes()]());
        encode_entry(shape, values.data(), values.data() + latent, entry.get());
        std::vector<float> got(size_of(shape.width()), 7.0f), expected(got);
        decode_entry(shape, entry.get(), expected.data());
        wide().decode_entry(shape, entry.get(), got.data());
        for (size_t i = 0; i < got.size(); ++i) CHECK(same(got[i], expected[i]));
      }
    }
  }
}

// A tile's arrays; what lies beside its rows holds NaN, which no result may show.
struct Tile {
  Tile(int tokens_, int rows_, std::mt19937& random) : tokens(tokens_), rows(rows_) {
    scores = random_floats(size_of(tokens * kPanel), random);
    for (size_t i = 0; i < scores.size(); ++i) {
      if (static_cast<int>(i % kPanel) >= rows) scores[i] = NAN;
    }
    for (int r = 0; r < kPanel; ++r) {
      const bool fresh = random() % 3 == 0;
      visible[r] = static_cast<int32_t>(random() % static_cast<unsigned>(tokens + 1));
      peak[r] = r >= rows ? NAN : fresh ? kNoPeak : 0.5f;
      sum[r] = fresh ? 0.0f : 2.0f;
      shrink[r] = 7.0f;
    }
  }
  ScoreTile view(float scale) { return {scores.data(), tokens, rows, scale, visible, peak, sum, shrink}; }

  int tokens;
  int rows;
  std::vector<float> scores;
  int32_t visible[kPanel];
  float peak[kPanel], sum[kPanel], shrink[kPanel];
};

// Near the value of the reference: a few units in the last place.
bool near(float got, float expected) {
  if (std::isnan(got) || std::isnan(expected)) return std::isnan(got) && std::isnan(expected);
  return got == expected ||
         std::fabs(got - expected) <= 1e-6f * std::fabs(expected) + 1.7e-38f;  // e^-87 or less is 0
}

void compare_softmax(Tile tile, float scale) {
  Tile expected = tile;
  const bool shrinks = generic::attention_primitives().softmax(expected.view(scale));
  CHECK(wide().softmax(tile.view(scale)) == shrinks);
  for (int r = 0; r < kPanel; ++r) {
    CHECK(near(tile.peak[r], expected.peak[r]));
    CHECK(near(tile.sum[r], expected.sum[r]));
    CHECK(near(tile.shrink[r], expected.shrink[r]));
    for (int t = 0; t < tile.tokens; ++t) {
      const size_t at = size_of(t * kPanel + r);
      CHECK(near(tile.scores[at], expected.scores[at]));
    }
  }
}

void test_softmax(std::mt19937& random) {
  for (const int rows : {8, 16, 24, 32}) {
    for (const int tokens : {1, 2, 63, 64}) {
      compare_softmax(Tile(tokens, rows, random), 0.7f);
      compare_softmax(Tile(tokens, rows, random), 60.0f);  // weights from 1 to none
    }
  }
  Tile blind(5, 16, random);
  std::fill_n(blind.visible, kPanel, 0);
  compare_softmax(blind, 1.0f);
  for (const float special : {NAN, INFINITY, -INFINITY, 3e38f, -3e38f}) {
    Tile tile(4, 24, random);
    std::fill_n(tile.visible, kPanel, 3);
    tile.scores[0] = tile.scores[size_of(2 * kPanel + 17)] = special;
    tile.scores[size_of(3 * kPanel + 20)] = special;  // hidden
    compare_softmax(tile, 0.5f);
  }
}

// The error of e^x, over all of its range.
void test_exponential() {
  constexpr int kTokens = 64;
  float worst = 0;
  for (int from = 0; from < 90; ++from) {
    std::mt19937 random(static_cast<unsigned>(from));
    Tile tile(kTokens, 32, random);
    std::fill_n(tile.visible, kPanel, kTokens);
    std::fill_n(tile.peak, kPanel, 0.0f);
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    for (float& score : tile.scores) score = -static_cast<float>(from) - uniform(random);
    const std::vector<float> x = tile.scores;
    wide().softmax(tile.view(1.0f));
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = std::exp(static_cast<double>(x[i]));
      if (x[i] < -87.0f) {
        CHECK(tile.scores[i] == 0.0f);
      } else {
        worst = std::max(worst, static_cast<float>(std::fabs(tile.scores[i] - exact) / exact));
      }
    }
  }
  CHECK(worst < 2.4e-7f);
}

void test_attention() {
  ThreadPool pool(some_cpus(2));
  for (const MlaDims& dims : odd_shapes()) {
    for (const auto& batch : odd_batches()) {
      for (int format = 0; format < kEntryFormats; ++format) {
        for (const bool absorbed : {false, true}) {
          const auto run = [&](const AttentionPrimitives& primitives) {
            return attend(primitives, pool, dims, static_cast<EntryFormat>(format), batch, absorbed,
                          format % 2 == 0);
          };
          const auto expected = run(generic::attention_primitives());
          const auto got = run(wide());
          for (size_t i = 0; i < got.size(); ++i) {
            CHECK(std::fabs(got[i] - expected[i]) <= 1e-4f * (1 + std::fabs(expected[i])));
          }
        }
      }
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(5);
  test_products(random);
  test_widen(random);
  test_blocks_of_codes(random);
  test_transpose(random);
  test_entries(random);
  test_softmax(random);
  test_exponential();
  test_attention();
  std::puts("all emulated attention primitives passed");
}
