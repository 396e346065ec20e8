#include "generic/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "quant/half.h"

namespace trimaran::generic {
namespace {

float widen(float value) { return value; }
float widen(uint16_t half) { return f16_to_float(half); }

template <class Element>
void multiply(const Product& p, const Element* b) {
  for (int i = 0; i < p.m; ++i) {
    float* c = p.c + i * p.ldc;
    if (!p.accumulate) std::fill_n(c, p.n, 0.0f);
    for (int64_t k = 0; k < p.k; ++k) {
      const float a = p.a[i * p.a_row + k * p.a_column];
      for (int j = 0; j < p.n; ++j) c[j] += a * widen(b[k * p.ldb + j]);
    }
  }
}

void widen_half(const uint16_t* src, int64_t n, float* dst) {
  std::transform(src, src + n, dst, f16_to_float);
}

void widen_codes(const uint8_t* src, int64_t blocks, int n, float* dst) {
  for (int64_t block = 0; block < blocks; ++block, src += (kCodeRows + 2) * n) {
    for (int i = 0; i < kCodeRows * n; ++i, ++dst) {
      const float scale = f16_to_float(load_u16(src + kCodeRows * n + 2 * (i % n)));
      *dst = static_cast<float>(static_cast<int8_t>(src[i])) * scale;
    }
  }
}

void multiply_codes(const Product& product, const uint8_t* b) {
  std::vector<float> wide(static_cast<size_t>(product.k * product.ldb));
  widen_codes(b, product.k / kCodeRows, static_cast<int>(product.ldb), wide.data());
  multiply(product, wide.data());
}

void transpose(const float* src, int64_t lds, int64_t rows, int64_t columns, float* dst, int64_t ldd) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) dst[c * ldd + r] = src[r * lds + c];
  }
}

bool softmax(const ScoreTile& tile) {
  bool shrinks = false;
  for (int row = 0; row < tile.rows; ++row) {
    float* scores = tile.scores + row;
    const int visible = std::clamp(tile.visible[row], 0, tile.tokens);
    float peak = tile.peak[row];
    for (int t = 0; t < visible; ++t) peak = std::max(peak, scores[t * kPanel] * tile.scale);
    float sum = 0;
    for (int t = 0; t < tile.tokens; ++t) {
      float& score = scores[t * kPanel];
      score = t < visible ? std::exp(score * tile.scale - peak) : 0.0f;
      sum += score;
    }
    tile.shrink[row] = std::exp(tile.peak[row] - peak);
    tile.sum[row] = tile.sum[row] * tile.shrink[row] + sum;
    tile.peak[row] = peak;
    shrinks |= tile.shrink[row] != 1.0f;
  }
  return shrinks;
}

}  // namespace

const AttentionPrimitives& attention_primitives() {
  static const AttentionPrimitives instance{"generic",  multiply<float>, multiply<uint16_t>, multiply_codes,
                                            widen_half, widen_codes,     transpose,          decode_entry,
                                            softmax,    nullptr};
  return instance;
}

}  // namespace trimaran::generic
