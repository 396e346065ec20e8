#include "attention/maps.h"

#include <algorithm>

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

int PanelMatrices::panel_columns(int panel) const { return std::min(kPanel, columns_ - panel * kPanel); }

int64_t PanelMatrices::offset(int head, int panel) const {
  return static_cast<int64_t>(depth_) * (static_cast<int64_t>(head) * padded_columns_ + panel * kPanel);
}

void PanelMatrices::multiply(const AttentionPrimitives& primitives, int head, int panel,
                             Product product) const {
  const auto at = static_cast<size_t>(offset(head, panel));
  product.k = depth_;
  product.ldb = product.n = panel_stride(panel);
  if (half_.empty()) {
    primitives.multiply(product, &full_[at]);
  } else {
    primitives.multiply_half(product, &half_[at]);
  }
}

void PanelMatrices::widen(const AttentionPrimitives& primitives, int head, int panel, float* dst) const {
  const auto at = static_cast<size_t>(offset(head, panel));
  const int64_t n = static_cast<int64_t>(depth_) * panel_stride(panel);
  if (half_.empty()) {
    std::copy_n(&full_[at], n, dst);
  } else {
    primitives.widen_half(&half_[at], n, dst);
  }
}

LatentMaps::LatentMaps(const MlaDims& d, const float* k_b, const float* v_b, bool half)
    : heads_(d.heads),
      absorb_({k_b, static_cast<int64_t>(d.nope) * d.latent, d.latent, 1}, d.heads, d.nope, d.latent, half),
      unabsorb_({v_b, static_cast<int64_t>(d.latent) * d.value, d.value, 1}, d.heads, d.latent, d.value,
                half) {}

}  // namespace trimaran
