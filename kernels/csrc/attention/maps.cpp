#include "attention/maps.h"

#include <algorithm>
#include <utility>

#include "quant/half.h"

namespace trimaran {

PanelMatrices::PanelMatrices(const Source& source, int heads, int depth, int columns, bool half)
    : depth_(depth), columns_(columns), padded_columns_(EntryShape::padded(columns)) {
  const auto size =
      static_cast<size_t>(heads) * static_cast<size_t>(depth) * static_cast<size_t>(padded_columns_);
  if (half) {
    half_.resize(size);
  } else {
    full_.resize(size);
  }
  for (int head = 0; head < heads; ++head) {
    for (int panel = 0; panel < panels(); ++panel) {
      const int64_t start = offset(head, panel);
      for (int k = 0; k < depth; ++k) {
        for (int j = 0; j < panel_columns(panel); ++j) {
          const float value = source.data[head * source.head_stride + k * source.row_stride +
                                          (panel * kPanel + j) * source.column_stride];
          const auto at = static_cast<size_t>(start + k * panel_stride(panel) + j);
          if (half) {
            half_[at] = float_to_f16(value);
          } else {
            full_[at] = value;
          }
        }
      }
    }
  }
}

PanelMatrices::PanelMatrices(const BlockQ8_0* blocks, int heads, int depth, int columns)
    : depth_(depth), columns_(columns), padded_columns_(EntryShape::padded(columns)) {
  const int64_t column_blocks = depth / kCodeRows;
  codes_.resize(static_cast<size_t>(heads * column_blocks * (kCodeRows + 2) * padded_columns_));
  for (int head = 0; head < heads; ++head) {
    for (int panel = 0; panel < panels(); ++panel) {
      const int64_t column = int64_t{head} * columns + panel * kPanel;
      uint8_t* dst = codes_.data() + codes_offset(head, panel);
      for (int64_t block = 0; block < column_blocks; ++block) {
        copy_block(blocks + column * column_blocks + block, column_blocks, panel_columns(panel),
                   panel_stride(panel), dst);
        dst += (kCodeRows + 2) * panel_stride(panel);
      }
    }
  }
}

// One block of n columns, turned: those of the file hold a column each.
void PanelMatrices::copy_block(const BlockQ8_0* columns, int64_t column_blocks, int n, int stride,
                               uint8_t* dst) const {
  for (int j = 0; j < n; ++j) {
    const BlockQ8_0& block = columns[j * column_blocks];
    for (int i = 0; i < kCodeRows; ++i) dst[i * stride + j] = static_cast<uint8_t>(block.qs[i]);
    std::copy_n(block.d, 2, dst + kCodeRows * stride + 2 * j);
  }
}

int PanelMatrices::panel_columns(int panel) const { return std::min(kPanel, columns_ - panel * kPanel); }

int64_t PanelMatrices::offset(int head, int panel) const {
  return static_cast<int64_t>(depth_) * (static_cast<int64_t>(head) * padded_columns_ + panel * kPanel);
}

int64_t PanelMatrices::codes_offset(int head, int panel) const {
  return offset(head, panel) / kCodeRows * (kCodeRows + 2);
}

void PanelMatrices::multiply(const AttentionPrimitives& primitives, int head, int panel,
                             Product product) const {
  const auto at = static_cast<size_t>(offset(head, panel));
  product.k = depth_;
  product.ldb = product.n = panel_stride(panel);
  if (!codes_.empty()) {
    primitives.multiply_codes(product, codes_.data() + codes_offset(head, panel));
  } else if (!half_.empty()) {
    primitives.multiply_half(product, &half_[at]);
  } else {
    primitives.multiply(product, &full_[at]);
  }
}

void PanelMatrices::widen(const AttentionPrimitives& primitives, int head, int panel, float* dst) const {
  const auto at = static_cast<size_t>(offset(head, panel));
  const int64_t n = static_cast<int64_t>(depth_) * panel_stride(panel);
  if (!codes_.empty()) {
    primitives.widen_codes(codes_.data() + codes_offset(head, panel), depth_ / kCodeRows, panel_stride(panel),
                           dst);
  } else if (!half_.empty()) {
    primitives.widen_half(&half_[at], n, dst);
  } else {
    std::copy_n(&full_[at], n, dst);
  }
}

LatentMaps::LatentMaps(int heads, PanelMatrices absorb, PanelMatrices unabsorb, bool rounded)
    : heads_(heads), rounded_(rounded), absorb_(std::move(absorb)), unabsorb_(std::move(unabsorb)) {}

LatentMaps::LatentMaps(const MlaDims& d, const float* k_b, const float* v_b, bool rounded)
    : LatentMaps(
          d.heads, {{k_b, int64_t{d.nope} * d.latent, d.latent, 1}, d.heads, d.nope, d.latent, rounded},
          {{v_b, int64_t{d.latent} * d.value, d.value, 1}, d.heads, d.latent, d.value, rounded}, rounded) {}

}  // namespace trimaran
