#include "attention/expanded.h"

#include <algorithm>

namespace trimaran {
namespace {

constexpr int kTiles = 2;  // expanded before a block's queries are read: with more they leave the cache

int64_t panels_of(int64_t n) { return (n + kPanel - 1) / kPanel; }

}  // namespace

ExpandedAttention::ExpandedAttention(ThreadPool& pool, const AttentionPrimitives& primitives,
                                     const MlaDims& dims)
    : pool_(pool),
      primitives_(primitives),
      dims_(dims),
      latent_(EntryShape::padded(dims.latent)),
      nope_(EntryShape::padded(dims.nope)),
      value_(EntryShape::padded(dims.value)),
      entry_width_(latent_ + EntryShape::padded(dims.rope)),
      key_width_(nope_ + EntryShape::padded(dims.rope)),
      workers_(static_cast<size_t>(pool.size())),
      blocks_(static_cast<size_t>(pool.size())) {}

void ExpandedAttention::run(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
                            const std::vector<Segment>& segments, float* out) {
  items_ = cut_into_items(segments, dims_.heads, pool_.size());
  if (items_.empty()) return;
  int64_t most = 0;
  for (const ExpandedItem& item : items_) most = std::max(most, item.n);
  Carver sizes(nullptr);
  carve(most, sizes);
  for (Scratch& worker : workers_) worker.at_least(sizes.taken());
  for (std::vector<RowBlock>& blocks : blocks_) blocks.resize(static_cast<size_t>(panels_of(most)));
  pool_.parallel_for(static_cast<int64_t>(items_.size()), [&](int64_t index, int worker) {
    Carver memory(workers_[static_cast<size_t>(worker)].data());
    const Views views = carve(most, memory);
    const ExpandedItem& item = items_[static_cast<size_t>(index)];
    run_item(maps, queries, cache, item, views, blocks_[static_cast<size_t>(worker)]);
    write(item, views, out);
  });
}

ExpandedAttention::Views ExpandedAttention::carve(int64_t n, Carver& memory) const {
  const int64_t value_panels = panels_of(value_);
  Views views;
  views.k_b = memory.take(panels_of(nope_) * latent_ * kPanel);
  views.v_b = memory.take(value_panels * latent_ * kPanel);
  views.panel = memory.take(static_cast<int64_t>(std::max(nope_, latent_)) * kPanel);
  views.entries = memory.take(static_cast<int64_t>(kKeyTile) * entry_width_);
  views.keys = memory.take(static_cast<int64_t>(kTiles) * kKeyTile * key_width_);
  views.values = memory.take(kTiles * value_panels * kKeyTile * kPanel);
  views.scores = memory.take(static_cast<int64_t>(kKeyTile) * kPanel);
  views.rows = memory.take(static_cast<int64_t>(kPanel) * key_width_);
  views.queries = memory.take(panels_of(n) * key_width_ * kPanel);
  views.out = memory.take(panels_of(n) * kPanel * value_);
  return views;
}

void ExpandedAttention::run_item(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
                                 const ExpandedItem& item, const Views& views,
                                 std::vector<RowBlock>& blocks) const {
  const auto n_blocks = static_cast<size_t>(panels_of(item.n));
  widen_maps(maps, item.head, views);
  for (size_t b = 0; b < n_blocks; ++b) {
    open_block(queries, item, static_cast<int64_t>(b) * kPanel, views, blocks[b]);
  }
  const int64_t visible = item.visible();
  KeyTile tiles[kTiles];
  for (int64_t first = 0; first < visible;) {
    int n_tiles = 0;
    for (; n_tiles < kTiles && first < visible; first += kKeyTile) {
      const int tokens = static_cast<int>(std::min<int64_t>(kKeyTile, visible - first));
      decode_tile(primitives_, cache, *item.segment, first, tokens, views.entries);
      tiles[n_tiles] = expand(first, tokens, views, n_tiles);
      ++n_tiles;
    }
    for (size_t b = 0; b < n_blocks; ++b) {
      for (int t = 0; t < n_tiles; ++t)
        attend_tile(primitives_, tiles[t], dims_.scale, views.scores, blocks[b]);
    }
  }
  for (size_t b = 0; b < n_blocks; ++b) normalise(value_, blocks[b]);
}

// Both maps of a head as floats: k_b transposed, so that latents times either gives a row a token.
void ExpandedAttention::widen_maps(const LatentMaps& maps, int head, const Views& views) const {
  const PanelMatrices& k_b = maps.absorb();
  for (int panel = 0; panel < k_b.panels(); ++panel) {
    const int stride = k_b.panel_stride(panel);
    std::fill(views.panel + k_b.depth() * stride, views.panel + nope_ * stride, 0.0f);
    k_b.widen(primitives_, head, panel, views.panel);
    for (int64_t i = 0; i < nope_; i += kPanel) {
      primitives_.transpose(views.panel + i * stride, stride, std::min<int64_t>(kPanel, nope_ - i), stride,
                            views.k_b + (i * latent_ + static_cast<int64_t>(panel) * kPanel * kPanel),
                            kPanel);
    }
  }
  const PanelMatrices& v_b = maps.unabsorb();
  for (int panel = 0; panel < v_b.panels(); ++panel) {
    v_b.widen(primitives_, head, panel, views.v_b + static_cast<int64_t>(panel) * latent_ * kPanel);
  }
}

// Queries [first, first + kPanel) of the item: rotated, padded and transposed.
void ExpandedAttention::open_block(const Queries& queries, const ExpandedItem& item, int64_t first,
                                   const Views& views, RowBlock& block) const {
  float* transposed = views.queries + first * key_width_;
  block.queries = transposed;
  block.rows = static_cast<int>(std::min<int64_t>(kPanel, item.n - first));
  block.out = views.out + first * value_;
  block.ld_out = value_;
  for (int r = 0; r < block.rows; ++r) {
    gather_query(queries, dims_, item, first + r, nope_, key_width_, views.rows + r * key_width_);
    block.visible[r] = item.segment->position + item.first + first + r + 1;
  }
  primitives_.transpose(views.rows, key_width_, block.padded_rows(), key_width_, transposed, kPanel);
  block.clear(value_);
}

// Keys and values of one head from the decoded entries, which begin at position `first`.
KeyTile ExpandedAttention::expand(int64_t first, int tokens, const Views& views, int place) const {
  float* keys = views.keys + static_cast<int64_t>(place) * kKeyTile * key_width_;
  float* values = views.values + place * panels_of(value_) * kKeyTile * kPanel;
  for (int column = 0; column < nope_; column += kPanel) {
    const int n = std::min(kPanel, nope_ - column);
    primitives_.multiply(
        {views.entries, entry_width_, 1, kPanel, keys + column, key_width_, tokens, n, latent_, false},
        views.k_b + static_cast<int64_t>(column) * latent_);
  }
  for (int t = 0; t < tokens; ++t) {
    std::copy_n(views.entries + t * entry_width_ + latent_, entry_width_ - latent_,
                keys + t * key_width_ + nope_);
  }
  for (int column = 0; column < value_; column += kPanel) {
    const int n = std::min(kPanel, value_ - column);
    primitives_.multiply({views.entries, entry_width_, 1, n, values + column * kKeyTile, kPanel, tokens, n,
                          dims_.latent, false},
                         views.v_b + static_cast<int64_t>(column) * latent_);
  }
  return {keys, key_width_, key_width_, values, kPanel, kKeyTile * kPanel, value_, first, tokens};
}

void ExpandedAttention::write(const ExpandedItem& item, const Views& views, float* out) const {
  for (int64_t i = 0; i < item.n; ++i) {
    const int64_t row = item.segment->first_row + item.first + i;
    std::copy_n(views.out + i * value_, dims_.value, out + (row * dims_.heads + item.head) * dims_.value);
  }
}

}  // namespace trimaran
