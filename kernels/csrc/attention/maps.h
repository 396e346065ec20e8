// Wkv_b of one layer, packed for products: latent → keys and values of all heads (arXiv 2405.04434 §2.1).
#pragma once

#include <cstdint>
#include <vector>

#include "attention/primitives.h"
#include "quant/blocks.h"

namespace trimaran {

struct MlaDims {
  int heads;
  int nope;
  int rope;
  int latent;
  int value;
  float scale;  // on the scores

  int query_width() const { return nope + rope; }
};

// Matrices of all heads, each [depth, columns] and cut into panels of kPanel columns that lie one after
// another, so that a product reads memory in order. The last panel's columns are padded with zeros to 8.
class PanelMatrices {
 public:
  // Element (k, j) of head h is at src[h · head_stride + k · row_stride + j · column_stride].
  struct Source {
    const float* data;
    int64_t head_stride;
    int64_t row_stride;
    int64_t column_stride;
  };
  PanelMatrices(const Source& source, int heads, int depth, int columns, bool half);
  // From GGUF's Q8_0 blocks, kept as they are but for their order: [heads, columns, depth / 32 blocks].
  PanelMatrices(const BlockQ8_0* blocks, int heads, int depth, int columns);

  int depth() const { return depth_; }
  int columns() const { return columns_; }
  int panels() const { return (columns_ + kPanel - 1) / kPanel; }
  // Columns of a panel, and the same padded: its row stride.
  int panel_columns(int panel) const;
  int panel_stride(int panel) const { return EntryShape::padded(panel_columns(panel)); }
  size_t bytes() const {
    return half_.size() * sizeof(uint16_t) + full_.size() * sizeof(float) + codes_.size();
  }

  // C = A · panel; A, C, m and accumulate as the product has them, the rest is set here.
  void multiply(const AttentionPrimitives& primitives, int head, int panel, Product product) const;
  // The panel as floats, rows of panel_stride() each.
  void widen(const AttentionPrimitives& primitives, int head, int panel, float* dst) const;

 private:
  int64_t offset(int head, int panel) const;
  int64_t codes_offset(int head, int panel) const;  // in bytes
  void copy_block(const BlockQ8_0* columns, int64_t column_blocks, int n, int stride, uint8_t* dst) const;

  int depth_;
  int columns_;
  int padded_columns_;
  // One of:
  std::vector<uint16_t> half_;  // binary16
  std::vector<float> full_;
  std::vector<uint8_t> codes_;  // blocks of kCodeRows rows of a panel, see primitives.h
};

// k_b: [heads, nope, latent] and v_b: [heads, latent, value].
class LatentMaps {
 public:
  // absorb: k_b, unabsorb: v_b. rounded: products may round to bf16 where there are matrix tiles.
  LatentMaps(int heads, PanelMatrices absorb, PanelMatrices unabsorb, bool rounded);
  // From float32; rounded: kept as binary16, too.
  LatentMaps(const MlaDims& dims, const float* k_b, const float* v_b, bool rounded);

  int heads() const { return heads_; }
  bool rounded() const { return rounded_; }
  const PanelMatrices& absorb() const { return absorb_; }      // nope → latent
  const PanelMatrices& unabsorb() const { return unabsorb_; }  // latent → value
  size_t bytes() const { return absorb_.bytes() + unabsorb_.bytes(); }

 private:
  int heads_;
  bool rounded_;
  PanelMatrices absorb_;
  PanelMatrices unabsorb_;
};

}  // namespace trimaran
