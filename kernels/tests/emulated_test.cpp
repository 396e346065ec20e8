// Runs the AVX-512 kernels on emulated instructions (tests/emulated/) and compares them with the portable
// reference, to the bit. Weights are random packed cells: every code, every integer scale.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "avx512/packed.h"
#include "generic/packed.h"
#include "packed/format.h"
#include "quant/half.h"

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
constexpr Kernel kKernels[] = {{"avx512", avx512::fill_bw_dots}, {"avx512_vnni", avx512::fill_vnni_dots}};

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
  reference[type](stripe.data(), n_cells, x.views.data(), tokens, expected.data());
  for (const Kernel& kernel : kKernels) {
    DotFn dots[kTypeSlots] = {};
    kernel.fill(dots);
    dots[type](stripe.data(), n_cells, x.views.data(), tokens, got.data());
    for (size_t i = 0; i < got.size(); ++i) {
      CHECK(same(got[i], expected[i]), "%s, type %d, cells %d, fill %d, token %d of %d, row %d: %g, not %g",
            kernel.name, type, static_cast<int>(n_cells), fill, static_cast<int>(i / kStripeRows), tokens,
            static_cast<int>(i % kStripeRows), static_cast<double>(got[i]), static_cast<double>(expected[i]));
    }
  }
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
  });
  std::puts("all emulated kernels passed");
}
