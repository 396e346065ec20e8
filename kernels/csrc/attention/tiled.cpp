#include "attention/tiled.h"

#include <algorithm>

namespace trimaran {
namespace {

constexpr int kTiles = 4;  // expanded before a block's queries and sums are read: 160 KiB in V3's sizes
constexpr int kTokenDepth = kKeyTile / kTileDepth;
constexpr int kTokenTiles = kKeyTile / kTileLines;
constexpr int kRowTiles = kPanel / kTileLines;

int whole_tiles(int n) { return static_cast<int>(tiles_of(n, kTileLines)) * kTileLines; }

uint16_t* take_words(int64_t tiles, Carver& memory) {
  return reinterpret_cast<uint16_t*>(memory.take(tiles * kTileWords / 2));
}

// A thread's tile registers while it works on an item.
class TileUse {
 public:
  explicit TileUse(const AttentionTiles& tiles) : tiles_(tiles) { tiles_.configure(); }
  ~TileUse() { tiles_.release(); }
  TileUse(const TileUse&) = delete;
  TileUse& operator=(const TileUse&) = delete;

 private:
  const AttentionTiles& tiles_;
};

}  // namespace

TiledAttention::TiledAttention(ThreadPool& pool, const AttentionPrimitives& primitives, const MlaDims& dims)
    : pool_(pool),
      primitives_(primitives),
      tiles_(*primitives.tiles),
      dims_(dims),
      latent_(EntryShape::padded(dims.latent)),
      nope_(whole_tiles(dims.nope)),
      value_(whole_tiles(dims.value)),
      entry_width_(latent_ + EntryShape::padded(dims.rope)),
      key_width_(nope_ + EntryShape::padded(dims.rope)),
      latent_depth_(static_cast<int>(tiles_of(dims.latent, kTileDepth))),
      key_depth_(static_cast<int>(tiles_of(key_width_, kTileDepth))),
      workers_(static_cast<size_t>(pool.size())),
      blocks_(static_cast<size_t>(pool.size())) {}

void TiledAttention::run(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
                         const std::vector<Segment>& segments, float* out) {
  const std::vector<ExpandedItem> items = cut_into_items(segments, dims_.heads, pool_.size());
  if (items.empty()) return;
  int64_t most = 0;
  for (const ExpandedItem& item : items) most = std::max(most, item.n);
  Carver sizes(nullptr);
  carve(most, sizes);
  for (Scratch& worker : workers_) worker.at_least(sizes.taken());
  for (std::vector<Block>& blocks : blocks_) blocks.resize(static_cast<size_t>(tiles_of(most, kPanel)));
  pool_.parallel_for(static_cast<int64_t>(items.size()), [&](int64_t index, int worker) {
    Carver memory(workers_[static_cast<size_t>(worker)].data());
    const Views views = carve(most, memory);
    run_item(maps, queries, cache, items[static_cast<size_t>(index)], views,
             blocks_[static_cast<size_t>(worker)], out);
  });
}

TiledAttention::Views TiledAttention::carve(int64_t n, Carver& memory) const {
  const int64_t nope_tiles = nope_ / kTileLines, value_tiles = value_ / kTileLines;
  const int64_t blocks = tiles_of(n, kPanel), wider = std::max(key_width_, value_);
  const int64_t nope = EntryShape::padded(dims_.nope);
  Views views;
  views.k_b = take_words(nope_tiles * latent_depth_, memory);
  views.v_b = take_words(tiles_of(value_, kPanel) * kRowTiles * latent_depth_, memory);
  views.latents = take_words(int64_t{kTokenTiles} * latent_depth_, memory);
  views.keys = take_words(int64_t{kTiles} * kTokenTiles * key_depth_, memory);
  views.values = take_words(kTiles * value_tiles * kTokenDepth, memory);
  views.weights = take_words(kRowTiles * kTokenDepth, memory);
  views.queries = take_words(blocks * kRowTiles * key_depth_, memory);
  views.panel = memory.take(std::max<int64_t>(nope, latent_) * kPanel);
  views.wide = memory.take(latent_ * nope);
  views.entries = memory.take(int64_t{kKeyTile} * entry_width_);
  views.expanded = memory.take(kKeyTile * wider);
  views.turned = memory.take(int64_t{kKeyTile} * value_);
  views.scores = memory.take(int64_t{kKeyTile} * kPanel);
  views.rows = memory.take(kPanel * wider);
  views.columns = memory.take(int64_t{kPanel} * key_width_);
  views.out = memory.take(blocks * kPanel * value_);
  return views;
}

void TiledAttention::run_item(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
                              const ExpandedItem& item, const Views& views, std::vector<Block>& blocks,
                              float* out) const {
  const TileUse use(tiles_);
  pack_maps(maps, item.head, views);
  const int64_t n_blocks = tiles_of(item.n, kPanel);
  for (int64_t b = 0; b < n_blocks; ++b) {
    open_block(queries, item, b * kPanel, views, blocks[static_cast<size_t>(b)]);
  }
  Tile tiles[kTiles];
  for (int64_t first = 0; first < item.visible();) {
    int n_tiles = 0;
    for (; n_tiles < kTiles && first < item.visible(); first += kKeyTile, ++n_tiles) {
      const int tokens = static_cast<int>(std::min<int64_t>(kKeyTile, item.visible() - first));
      tiles[n_tiles] = expand(cache, *item.segment, first, tokens, views, n_tiles);
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
      for (int t = 0; t < n_tiles; ++t) attend(tiles[t], views, blocks[static_cast<size_t>(b)]);
    }
  }
  for (int64_t b = 0; b < n_blocks; ++b) write(item, b * kPanel, blocks[static_cast<size_t>(b)], views, out);
}

// Both maps of a head: latents times either gives a row a token.
void TiledAttention::pack_maps(const LatentMaps& maps, int head, const Views& views) const {
  const PanelMatrices& k_b = maps.absorb();
  const int nope = EntryShape::padded(dims_.nope);
  for (int panel = 0; panel < k_b.panels(); ++panel) {
    const int stride = k_b.panel_stride(panel);
    std::fill(views.panel + k_b.depth() * stride, views.panel + nope * stride, 0.0f);
    k_b.widen(primitives_, head, panel, views.panel);
    primitives_.transpose(views.panel, stride, nope, stride, views.wide + int64_t{panel} * kPanel * nope,
                          nope);
  }
  tiles_.pack_right(views.wide, nope, dims_.latent, nope, views.k_b);
  const PanelMatrices& v_b = maps.unabsorb();
  for (int panel = 0; panel < v_b.panels(); ++panel) {
    const int stride = v_b.panel_stride(panel);
    v_b.widen(primitives_, head, panel, views.panel);
    tiles_.pack_right(views.panel, stride, dims_.latent, stride,
                      views.v_b + int64_t{panel} * kRowTiles * latent_depth_ * kTileWords);
  }
}

// Queries [first, first + kPanel) of the item: rotated, padded and packed.
void TiledAttention::open_block(const Queries& queries, const ExpandedItem& item, int64_t first,
                                const Views& views, Block& block) const {
  uint16_t* packed = views.queries + first / kPanel * kRowTiles * key_depth_ * kTileWords;
  block.queries = packed;
  block.rows = static_cast<int>(std::min<int64_t>(kPanel, item.n - first));
  block.first_visible = item.segment->position + item.first + first + 1;
  block.out = views.out + first * value_;
  for (int r = 0; r < block.rows; ++r) {
    gather_query(queries, dims_, item, first + r, nope_, key_width_, views.rows + r * key_width_);
  }
  std::fill(views.rows + block.rows * key_width_, views.rows + kPanel * key_width_, 0.0f);
  primitives_.transpose(views.rows, key_width_, kPanel, key_width_, views.columns, kPanel);
  tiles_.pack_right(views.columns, kPanel, key_width_, kPanel, packed);
  std::fill_n(block.out, int64_t{value_} * kPanel, 0.0f);
  std::fill_n(block.peak, kPanel, kNoPeak);
  std::fill_n(block.sum, kPanel, 0.0f);
}

// Keys and values of one head for tokens from position `first` on; those that are missing in the tile are 0.
TiledAttention::Tile TiledAttention::expand(const CacheLayer& cache, const Segment& segment, int64_t first,
                                            int tokens, const Views& views, int place) const {
  uint16_t* keys = views.keys + int64_t{place} * kTokenTiles * key_depth_ * kTileWords;
  uint16_t* values = views.values + int64_t{place} * (value_ / kTileLines) * kTokenDepth * kTileWords;
  decode_tile(primitives_, cache, segment, first, tokens, views.entries);
  std::fill(views.entries + tokens * entry_width_, views.entries + kKeyTile * entry_width_, 0.0f);
  tiles_.pack_left(views.entries, entry_width_, kKeyTile, dims_.latent, views.latents);
  tiles_.multiply({views.latents, latent_depth_, views.k_b, latent_depth_, views.expanded, key_width_,
                   kTokenTiles, nope_ / kTileLines, latent_depth_, false});
  for (int t = 0; t < kKeyTile; ++t) {
    std::copy_n(views.entries + t * entry_width_ + latent_, key_width_ - nope_,
                views.expanded + t * key_width_ + nope_);
  }
  tiles_.pack_left(views.expanded, key_width_, kKeyTile, key_width_, keys);
  tiles_.multiply({views.latents, latent_depth_, views.v_b, latent_depth_, views.expanded, value_,
                   kTokenTiles, value_ / kTileLines, latent_depth_, false});
  primitives_.transpose(views.expanded, value_, kKeyTile, value_, views.turned, kKeyTile);
  tiles_.pack_left(views.turned, kKeyTile, value_, kKeyTile, values);
  return {keys, values, first, tokens};
}

// The block's rows attend to those tokens of the tile that they see.
void TiledAttention::attend(const Tile& tile, const Views& views, Block& block) const {
  const int64_t last_visible = block.first_visible + block.rows - 1;
  const auto tokens = static_cast<int>(std::clamp<int64_t>(last_visible - tile.first, 0, tile.tokens));
  if (tokens == 0) return;
  tiles_.multiply({tile.keys, key_depth_, block.queries, key_depth_, views.scores, kPanel,
                   static_cast<int>(tiles_of(tokens, kTileLines)), kRowTiles, key_depth_, false});
  int32_t visible[kPanel] = {};
  for (int r = 0; r < block.rows; ++r) {
    visible[r] = static_cast<int32_t>(std::clamp<int64_t>(block.first_visible + r - tile.first, 0, tokens));
  }
  float shrink[kPanel];
  if (primitives_.softmax(
          {views.scores, tokens, kPanel, dims_.scale, visible, block.peak, block.sum, shrink})) {
    tiles_.scale(block.out, value_, shrink);
  }
  tiles_.pack_right(views.scores, kPanel, tokens, kPanel, views.weights);
  const int64_t depth = tiles_of(tokens, kTileDepth);
  tiles_.multiply({tile.values, kTokenDepth, views.weights, depth, block.out, kPanel, value_ / kTileLines,
                   kRowTiles, static_cast<int>(depth), true});
}

void TiledAttention::write(const ExpandedItem& item, int64_t first, const Block& block, const Views& views,
                           float* out) const {
  primitives_.transpose(block.out, kPanel, value_, kPanel, views.rows, value_);
  for (int r = 0; r < block.rows; ++r) {
    const int64_t row = item.segment->first_row + item.first + first + r;
    const float* from = views.rows + r * value_;
    const float share = 1 / block.sum[r];
    float* to = out + (row * dims_.heads + item.head) * dims_.value;
    std::transform(from, from + dims_.value, to, [share](float x) { return x * share; });
  }
}

}  // namespace trimaran
