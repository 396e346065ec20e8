// Runs the AVX-VNNI, AVX-512 and AMX kernels on emulated instructions (tests/emulated/) and compares them
// with the portable reference: AMX up to the rounding of bf16, the others to the bit. Weights are random
// packed cells: every code, every integer scale.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "amx/tiles.h"
#include "avx2/packed.h"
#include "avx512/activate.h"
#include "avx512/packed.h"
#include "generic/activate.h"
#include "generic/packed.h"
#include "packed/format.h"
#include "quant/half.h"
#include "runtime/blocked_rows.h"
#include "runtime/engine.h"

namespace {

using namespace trimaran;

#define CHECK(condition, ...)                                              \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fputc('\n', stderr);                                            \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

struct Kernel {
  const char* name;
  void (*fill)(DotFn*);
};
constexpr Kernel kKernels[] = {{"avx_vnni", avx2::fill_vnni_dots},
                               {"avx512", avx512::fill_bw_dots},
                               {"avx512_vnni", avx512::fill_vnni_dots}};

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || bits_from_float(a) == bits_from_float(b);
}

// Vectors of activations, quantised by the reference.
class Activations {
 public:
  Activations(const std::vector<float>& x, int64_t columns) : layout_(columns) {
    const auto n = static_cast<int64_t>(x.size()) / columns;
    buffer_.resize(static_cast<size_t>(n) * layout_.bytes);
    for (int64_t i = 0; i < n; ++i) {
      uint8_t* base = buffer_.data() + static_cast<size_t>(i) * layout_.bytes;
      generic::quantize(x.data() + i * columns, columns, 0, layout_.slot(base));
      views.push_back(layout_.vector(base));
    }
  }

  std::vector<QuantizedVector> views;

 private:
  ActivationLayout layout_;
  std::vector<uint8_t> buffer_;
};

// What fills the planes of codes and integer scales: random bits, or one byte everywhere.
constexpr int kFills[] = {-1, 0x00, 0x7f, 0x80, 0xff};

// f16 from 2^-7 to 2^3, of either sign.
uint16_t random_half(std::mt19937& random) {
  return static_cast<uint16_t>((random() & 0x8000u) | (8 + random() % 10) << 10 | (random() & 0x3ffu));
}

std::vector<uint8_t> random_stripe(const Format& f, int64_t n_cells, int fill, std::mt19937& random) {
  std::vector<uint8_t> stripe(static_cast<size_t>(n_cells) * static_cast<size_t>(f.cell_bytes()));
  const int halves_at = f.integer_scales() ? f.super_at() : f.scales_at();
  for (size_t i = 0; i < stripe.size(); ++i) {
    const auto at = static_cast<int>(i % static_cast<size_t>(f.cell_bytes()));
    if (at < halves_at) {
      stripe[i] = static_cast<uint8_t>(fill < 0 ? random() : static_cast<unsigned>(fill));
    } else if (at % 2 == 0) {
      const uint16_t half = random_half(random);
      stripe[i] = static_cast<uint8_t>(half);
      stripe[i + 1] = static_cast<uint8_t>(half >> 8);
    }
  }
  return stripe;
}

std::vector<float> random_vectors(int64_t n, int64_t columns, std::mt19937& random) {
  std::vector<float> x(static_cast<size_t>(n * columns));
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < x.size(); ++i) {
    switch (static_cast<int64_t>(i) / columns % 4) {
      case 0:  // the largest codes
        x[i] = random() % 2 == 0 ? 1.0f : -1.0f;
        break;
      case 1:  // all of one sign
        x[i] = -3.0f;
        break;
      default:
        x[i] = normal(random);
    }
  }
  return x;
}

void compare(const Format& f, int64_t n_cells, int fill, int tokens, std::mt19937& random) {
  const int64_t columns = n_cells * f.cell_columns;
  const std::vector<uint8_t> stripe = random_stripe(f, n_cells, fill, random);
  const Activations x(random_vectors(tokens, columns, random), columns);
  std::vector<float> expected(static_cast<size_t>(tokens) * kStripeRows), got(expected.size());
  DotFn reference[kTypeSlots] = {};
  generic::fill_dots(reference);
  const auto type = static_cast<int>(f.type);
  reference[type](stripe.data(), n_cells, x.views.data(), tokens, expected.data(), nullptr);
  for (const Kernel& kernel : kKernels) {
    DotFn dots[kTypeSlots] = {};
    kernel.fill(dots);
    dots[type](stripe.data(), n_cells, x.views.data(), tokens, got.data(), nullptr);
    for (size_t i = 0; i < got.size(); ++i) {
      CHECK(same(got[i], expected[i]), "%s, type %d, cells %d, fill %d, token %d of %d, row %d: %g, not %g",
            kernel.name, type, static_cast<int>(n_cells), fill, static_cast<int>(i / kStripeRows), tokens,
            static_cast<int>(i % kStripeRows), static_cast<double>(got[i]), static_cast<double>(expected[i]));
    }
  }
}

// Whole numbers up to 127, one such in each half: exact as int8 with a scale, and as bf16.
std::vector<float> whole_vectors(int64_t n, int64_t columns, std::mt19937& random) {
  std::vector<float> x(static_cast<size_t>(n * columns));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(static_cast<int>(random() % 255) - 127);
  for (size_t i = 0; i < x.size(); i += kHalfColumns) x[i + random() % kHalfColumns] = 127.0f;
  return x;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    size += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / size);
}

std::vector<uint8_t> random_stripes(const Format& f, int64_t n_cells, int stripes, std::mt19937& random) {
  return random_stripe(f, n_cells * stripes, -1, random);
}

// Vectors laid out for tiles.
BlockedRows blocked(const std::vector<float>& x, int tokens, int64_t columns, int terms) {
  BlockedRows blocks;
  blocks.resize({tokens}, columns, terms);
  for (int t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < columns; c += kGroupColumns) {
      amx::tile_primitives().round(&x[static_cast<size_t>(t * columns + c)],
                                   static_cast<int>(c % kStepColumns / kGroupColumns), terms,
                                   blocks.step(0, t, c));
    }
  }
  return blocks;
}

// [stripe][vector][row], vectors padded to whole blocks.
std::vector<float> multiply_tiles(const Format& f, const std::vector<uint8_t>& stripes, int64_t n_cells,
                                  const BlockedRows& x) {
  std::vector<float> out(static_cast<size_t>(kTileStripes * x.blocks(0)) * kBlockVectors * kStripeRows, NAN);
  amx::tile_primitives().multiply[static_cast<int>(f.type)](
      {stripes.data(), n_cells * f.cell_bytes(), n_cells, x.group(0), x.block_bytes(), x.blocks(0), x.terms(),
       nullptr},
      out.data());
  return out;
}

// Q3_K's scales have six bits in a file, and its products of codes and scales are exact for that.
void limit_scales(const Format& f, std::vector<uint8_t>& stripes) {
  if (f.type != GgmlType::Q3_K) return;
  for (size_t cell = 0; cell < stripes.size(); cell += static_cast<size_t>(f.cell_bytes())) {
    for (int i = f.scales_at(); i < f.super_at(); ++i) {
      uint8_t& scale = stripes[cell + static_cast<size_t>(i)];
      scale = static_cast<uint8_t>((scale & 63) - 32);
    }
  }
}

// Q6_K's products of codes and scales are rounded where activations have one term; nothing else is. Where all
// codes are the same, most of what a tile adds may be what coefficients take away.
double bound_of(const Format& f, int terms, bool same_codes) {
  if (terms == 1 && f.type == GgmlType::Q6_K) return 5.2e-3;
  return same_codes ? 5e-4 : 1e-4;
}

// Activations that bf16 holds: what differs is the weights. Sums of activations, and what is added for each,
// are rounded to 16 bits; a sum of weights near zero shows that most.
void compare_tiles(const Format& f, int64_t n_cells, int fill, int tokens, int terms, std::mt19937& random) {
  const int64_t columns = n_cells * f.cell_columns;
  const auto stripe_size = n_cells * f.cell_bytes();
  std::vector<uint8_t> stripes = random_stripe(f, n_cells * kTileStripes, fill, random);
  limit_scales(f, stripes);
  const std::vector<float> x = whole_vectors(tokens, columns, random);
  const Activations codes(x, columns);
  const BlockedRows blocks = blocked(x, tokens, columns, terms);
  const std::vector<float> got = multiply_tiles(f, stripes, n_cells, blocks);
  const size_t floats = got.size() / kTileStripes;
  std::vector<float> expected(static_cast<size_t>(tokens) * kStripeRows);
  DotFn reference[kTypeSlots] = {};
  generic::fill_dots(reference);
  for (int s = 0; s < kTileStripes; ++s) {
    reference[static_cast<int>(f.type)](stripes.data() + s * stripe_size, n_cells, codes.views.data(), tokens,
                                        expected.data(), nullptr);
    const auto* first = got.data() + static_cast<size_t>(s) * floats;
    const std::vector<float> part(first, first + expected.size());
    const double error = distance(part, expected);
    const bool both_zero = std::isnan(error) && part == expected;
    CHECK(both_zero || error < bound_of(f, terms, fill >= 0),
          "type %d, cells %d, fill %d, tokens %d, terms %d: error %g", static_cast<int>(f.type),
          static_cast<int>(n_cells), fill, tokens, terms, error);
  }
}

// Activations as they come: what differs is their rounding, and that is a hundredth as much with two terms.
void compare_terms(const Format& f, std::mt19937& random) {
  constexpr int kCells = 4, kTokens = 3;
  const int64_t columns = kCells * f.cell_columns;
  std::vector<uint8_t> stripes = random_stripes(f, kCells, kTileStripes, random);
  limit_scales(f, stripes);
  std::vector<float> x(static_cast<size_t>(kTokens * columns));
  std::normal_distribution<float> normal;
  for (float& value : x) value = normal(random);
  const auto got = [&](const std::vector<float>& vectors, int terms) {
    return multiply_tiles(f, stripes, kCells, blocked(vectors, kTokens, columns, terms));
  };
  // By parts that two terms hold: the sum of their products is the product.
  std::vector<float> upper = x, lower = x;
  for (size_t i = 0; i < x.size(); ++i) {
    upper[i] = bf16_to_float(float_to_bf16(x[i]));
    lower[i] = x[i] - upper[i];
  }
  std::vector<float> exact = got(upper, 2);
  const std::vector<float> rest = got(lower, 2);
  for (size_t i = 0; i < exact.size(); ++i) exact[i] += rest[i];
  const double one = distance(got(x, 1), exact), two = distance(got(x, 2), exact);
  CHECK(one > 2e-4 && one < 1e-2, "type %d: error %g", static_cast<int>(f.type), one);
  CHECK(two < 5e-5, "type %d: error %g", static_cast<int>(f.type), two);
}

// A vector's result does not depend on how many others there are, nor on its place among them.
void test_tiles_do_not_depend_on_the_batch(std::mt19937& random) {
  const Format& f = packed::Q5_K::format;
  const int64_t columns = 2 * f.cell_columns;
  const std::vector<uint8_t> stripes = random_stripes(f, 2, kTileStripes, random);
  const std::vector<float> x = whole_vectors(50, columns, random);
  const std::vector<float> all = multiply_tiles(f, stripes, 2, blocked(x, 50, columns, 1));
  for (const int t : {0, 17, 33, 49}) {
    const std::vector<float> alone(x.begin() + t * columns, x.begin() + (t + 1) * columns);
    const std::vector<float> one = multiply_tiles(f, stripes, 2, blocked(alone, 1, columns, 1));
    for (int s = 0; s < kTileStripes; ++s) {
      for (int r = 0; r < kStripeRows; ++r) {
        const float got = one[static_cast<size_t>(s * kBlockVectors * kStripeRows + r)];
        CHECK(same(got, all[static_cast<size_t>((s * 64 + t) * kStripeRows + r)]), "vector %d, row %d", t, r);
      }
    }
  }
}

// What is not finite stays in its vector, and in its row.
void test_tiles_keep_vectors_apart(std::mt19937& random) {
  const Format& f = packed::Q4_K::format;
  std::vector<uint8_t> stripes = random_stripes(f, 1, kTileStripes, random);
  std::vector<float> x = whole_vectors(18, f.cell_columns, random);
  const auto multiply = [&] { return multiply_tiles(f, stripes, 1, blocked(x, 18, f.cell_columns, 1)); };
  const std::vector<float> before = multiply();
  x[5 * 256 + 3] = NAN;
  x[17 * 256 + 200] = INFINITY;
  const std::vector<float> after = multiply();
  stripes[static_cast<size_t>(f.super_at() + 2 * 7)] = 0;
  stripes[static_cast<size_t>(f.super_at() + 2 * 7 + 1)] =
      0x7e;  // the scale of row 7 of the first stripe: NaN
  const std::vector<float> broken = multiply();
  for (size_t i = 0; i < before.size(); ++i) {
    const size_t vector = i / kStripeRows % 32;
    const bool bad = vector == 5 || vector == 17,
               bad_row = i / (32 * kStripeRows) == 0 && i % kStripeRows == 7;
    CHECK(bad ? !std::isfinite(after[i]) : same(before[i], after[i]), "vector %d", static_cast<int>(vector));
    CHECK(bad_row ? std::isnan(broken[i]) : same(after[i], broken[i]), "row %d", static_cast<int>(i % 16));
  }
}

// Against the portable function to the bit, and that against doubles; all lengths, and what is not finite.
void test_activate(std::mt19937& random) {
  std::vector<float> gate{0.0f,   -0.0f,   NAN,   INFINITY, -INFINITY, -87.0f,
                          -88.5f, -200.0f, 87.5f, 3e38f,    -3e38f};
  std::uniform_real_distribution<float> uniform(-87.0f, 87.0f);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 2000; ++i) gate.push_back(i % 2 == 0 ? uniform(random) : normal(random));
  const size_t n = gate.size();
  std::vector<float> up(n, 1.0f), expected(n), got(n);
  generic::activate(gate.data(), up.data(), static_cast<int64_t>(n), expected.data());
  for (const size_t length : {n, size_t{0}, size_t{1}, size_t{15}, size_t{16}, size_t{33}}) {
    std::fill(got.begin(), got.end(), 7.0f);
    avx512::activate(gate.data(), up.data(), static_cast<int64_t>(length), got.data());
    for (size_t i = 0; i < n; ++i) {
      CHECK(same(got[i], i < length ? expected[i] : 7.0f), "silu of %g", static_cast<double>(gate[i]));
    }
  }
  for (size_t i = 0; i < n; ++i) {
    const double x = gate[i], exact = x / (1 + std::exp(-x));
    if (!std::isfinite(x)) {
      CHECK(!std::isfinite(expected[i]), "silu of %g", x);
    } else if (x < -87) {
      CHECK(std::abs(expected[i]) < 1e-38 * -x, "silu of %g: %g", x, static_cast<double>(expected[i]));
    } else {
      const double error = std::abs(expected[i] - exact);
      CHECK(error <= 4.8e-7 * std::abs(exact), "silu of %g: %g, not %g", x, static_cast<double>(expected[i]),
            exact);
    }
  }
}

Primitives generic_with(const TilePrimitives* tiles) {
  Primitives p{"emulated", {}, nullptr, generic::quantize, avx512::activate, {}, nullptr, tiles};
  generic::fill_dots(p.dot);
  return p;
}

// Whole experts of which some get tokens enough for tiles; calls grow and shrink.
void test_engine_with_tiles(std::mt19937& random) {
  constexpr int kHidden = 320, kIntermediate = 96, kExperts = 4, kTopK = 2, kMostTokens = 40;
  const Format& f = packed::Q4_1::format;
  const auto matrices = [&](int rows, int columns) {
    return random_stripes(f, cells_of(f, columns), static_cast<int>(stripes_of(rows)) * kExperts, random);
  };
  const std::vector<uint8_t> gate = matrices(kIntermediate, kHidden), up = matrices(kIntermediate, kHidden);
  const std::vector<uint8_t> down = matrices(kHidden, kIntermediate);
  const Primitives with = generic_with(&amx::tile_primitives()), without = generic_with(nullptr);
  ThreadPool pool({0});
  const EngineDims dims{kHidden, kIntermediate, kExperts, kTopK, kMostTokens};
  ExpertEngine engine(pool, with, dims), reference(pool, without, dims);
  const auto matrix = [&f](const std::vector<uint8_t>& bytes) {
    return Matrix{f.type, bytes.data(), bytes.size(), true};
  };
  for (ExpertEngine* e : {&engine, &reference}) {
    e->add_layer(0, {matrix(gate), matrix(up), matrix(down), 0, kExperts});
  }
  for (const int n : {1, 40, 3, 33, 11}) {
    std::vector<float> x(static_cast<size_t>(n * kHidden)), weights(static_cast<size_t>(n * kTopK));
    std::normal_distribution<float> normal;
    for (float& value : x) value = normal(random);
    for (float& value : weights) value = normal(random);
    std::vector<int32_t> ids(weights.size());
    // Expert 0 gets every token, the others share the rest.
    for (size_t i = 0; i < ids.size(); ++i) {
      ids[i] = i % 2 == 0 ? 0 : static_cast<int32_t>(1 + random() % (kExperts - 1));
    }
    std::vector<float> got(x.size(), NAN), expected(x.size());
    CHECK(engine.forward(0, n, x.data(), ids.data(), weights.data(), got.data(), DType::f32) == Status::ok,
          "%d tokens", n);
    reference.forward(0, n, x.data(), ids.data(), weights.data(), expected.data(), DType::f32);
    const double error = distance(got, expected);
    CHECK(error < 1.5e-2, "%d tokens: error %g", n, error);
    const int least = amx::tile_primitives().least_tokens[static_cast<int>(f.type)];
    CHECK((error == 0) == (n < least), "%d tokens: error %g", n, error);
  }
}

// An exact engine: everything by tiles, and a token's result is the same alone and with any number of
// threads.
void test_exact_engine(std::mt19937& random) {
  constexpr int kHidden = 256, kIntermediate = 256, kExperts = 3, kTopK = 2, kTokens = 21;
  const Format& f = packed::Q6_K::format;
  std::vector<uint8_t> stripes[3];
  for (std::vector<uint8_t>& s : stripes) {
    s = random_stripes(f, 1, static_cast<int>(stripes_of(kHidden)) * kExperts, random);
  }
  const auto matrix = [&](int i) { return Matrix{f.type, stripes[i].data(), stripes[i].size(), true}; };
  const Primitives primitives = generic_with(&amx::tile_primitives());
  const bool several = std::thread::hardware_concurrency() > 1;
  ThreadPool one({0}), two(several ? std::vector<int>{0, 1} : std::vector<int>{0});
  const EngineDims dims{kHidden, kIntermediate, kExperts, kTopK, kTokens};
  ExpertEngine exact(one, primitives, dims, true), threads(two, primitives, dims, true),
      quick(one, primitives, dims);
  for (ExpertEngine* e : {&exact, &threads, &quick}) {
    e->add_layer(0, {matrix(0), matrix(1), matrix(2), 0, kExperts});
  }
  std::vector<float> x(kTokens * kHidden), weights(kTokens * kTopK, 0.5f);
  std::normal_distribution<float> normal;
  for (float& value : x) value = normal(random);
  std::vector<int32_t> ids(weights.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i / 5 + i % 2) % kExperts);
  const auto run = [&](ExpertEngine& engine, int first, int n) {
    std::vector<float> y(static_cast<size_t>(n * kHidden), NAN);
    CHECK(engine.forward(0, n, &x[static_cast<size_t>(first * kHidden)],
                         &ids[static_cast<size_t>(first * kTopK)], weights.data(), y.data(),
                         DType::f32) == Status::ok,
          "%d tokens", n);
    return y;
  };
  const std::vector<float> all = run(exact, 0, kTokens);
  CHECK(run(threads, 0, kTokens) == all, "two threads");
  for (const int t : {0, 11, 20}) {
    const std::vector<float> alone = run(exact, t, 1);
    CHECK(std::equal(alone.begin(), alone.end(), all.begin() + t * kHidden), "token %d", t);
  }
  const double error = distance(run(quick, 0, kTokens), all);
  CHECK(error > 1e-3 && error < 2e-2, "error %g", error);
}

}  // namespace

int main() {
  std::mt19937 random(7);
  for_each_format([&random](auto tag) {
    const Format& f = decltype(tag)::format;
    for (const int tokens : {1, 2, 3, 4, 5, 8, 16, 33}) compare(f, 3, -1, tokens, random);
    for (const int fill : kFills) compare(f, 1, fill, 5, random);
    compare(f, 28, -1, 7, random);  // more than one chunk of the first-level cache
    compare(f, 2, -1, 100, random);
    for (const int terms : {1, 2}) {
      for (const int tokens : {1, 16, 17, 32, 49}) compare_tiles(f, 3, -1, tokens, terms, random);
      for (const int fill : kFills) compare_tiles(f, 1, fill, 5, terms, random);
      compare_tiles(f, 2 * 2048 / f.cell_columns + 1, -1, 2, terms, random);  // steps beyond two parts
    }
    compare_tiles(f, 1, -1, 200, 1, random);
    compare_terms(f, random);
  });
  test_tiles_do_not_depend_on_the_batch(random);
  test_activate(random);
  test_tiles_keep_vectors_apart(random);
  test_engine_with_tiles(random);
  test_exact_engine(random);
  std::puts("all emulated kernels passed");
}
