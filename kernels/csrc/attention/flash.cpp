#include "attention/flash.h"

#include <algorithm>
#include <cmath>

namespace trimaran {
namespace {

void scale_row(float* row, int n, float factor) {
  for (int i = 0; i < n; ++i) row[i] *= factor;
}

void add_scaled(const float* src, int n, float factor, float* row) {
  for (int i = 0; i < n; ++i) row[i] += factor * src[i];
}

}  // namespace

void RowBlock::clear(int value_width) {
  for (int r = 0; r < rows; ++r) std::fill_n(out + r * ld_out, value_width, 0.0f);
  std::fill_n(peak, kPanel, kNoPeak);
  std::fill_n(sum, kPanel, 0.0f);
}

void attend_tile(const AttentionPrimitives& primitives, const KeyTile& tile, float scale, float* scores,
                 RowBlock& block) {
  const int64_t reach = std::min<int64_t>(tile.tokens, block.last_visible() - tile.first);
  if (reach <= 0) return;
  const int tokens = static_cast<int>(reach);
  primitives.multiply({tile.keys, tile.ld_keys, 1, kPanel, scores, kPanel, tokens, block.padded_rows(),
                       tile.key_width, false},
                      block.queries);
  int32_t visible[kPanel] = {};
  for (int r = 0; r < block.rows; ++r) {
    visible[r] = static_cast<int32_t>(std::clamp<int64_t>(block.visible[r] - tile.first, 0, tokens));
  }
  float shrink[kPanel];
  const bool shrinks = primitives.softmax(
      {scores, tokens, block.padded_rows(), scale, visible, block.peak, block.sum, shrink});
  if (shrinks) {
    for (int r = 0; r < block.rows; ++r) scale_row(block.out + r * block.ld_out, tile.value_width, shrink[r]);
  }
  for (int first = 0; first < tile.value_width; first += kPanel) {
    const int n = std::min(kPanel, tile.value_width - first);
    primitives.multiply(
        {scores, 1, kPanel, tile.ld_values, block.out + first, block.ld_out, block.rows, n, tokens, true},
        tile.values + first / kPanel * tile.panel_stride);
  }
}

void merge(const RowBlock& part, int value_width, RowBlock& into) {
  for (int r = 0; r < into.rows; ++r) {
    const float peak = std::max(into.peak[r], part.peak[r]);
    const float old_share = std::exp(into.peak[r] - peak);
    const float new_share = std::exp(part.peak[r] - peak);
    scale_row(into.out + r * into.ld_out, value_width, old_share);
    add_scaled(part.out + r * part.ld_out, value_width, new_share, into.out + r * into.ld_out);
    into.sum[r] = into.sum[r] * old_share + part.sum[r] * new_share;
    into.peak[r] = peak;
  }
}

void normalise(int value_width, RowBlock& block) {
  for (int r = 0; r < block.rows; ++r) scale_row(block.out + r * block.ld_out, value_width, 1 / block.sum[r]);
}

}  // namespace trimaran
