#include "attention/absorbed.h"

#include <algorithm>

namespace trimaran {
namespace {

constexpr int64_t kPassRows = 16384;            // (query, head) rows at a time: bounds the scratch memory
constexpr int64_t kMaxPartBytes = 256ll << 20;  // of what parts hand over
constexpr int kMostPanelsOfItem = 8;            // of a map: memory is read fastest in long pieces
constexpr int kItemsPerThread = 16;             // at least, so that the last ones to finish cost little
constexpr int kFewRows = 6;                     // up to so many, widening a panel first does not pay

constexpr int64_t kQueryFloats = kPanel;  // times width: a block's transposed queries
constexpr int64_t kScoreFloats = kKeyTile * kPanel;

}  // namespace

AbsorbedAttention::AbsorbedAttention(ThreadPool& pool, const AttentionPrimitives& primitives,
                                     const MlaDims& dims)
    : pool_(pool),
      primitives_(primitives),
      dims_(dims),
      latent_(EntryShape::padded(dims.latent)),
      width_(latent_ + EntryShape::padded(dims.rope)),
      workers_(static_cast<size_t>(pool.size())) {}

void AbsorbedAttention::run(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
                            const std::vector<Segment>& segments, float* out) {
  const int64_t limit = std::max<int64_t>(1, kPassRows / dims_.heads);
  for (Segment segment : segments) {
    while (segment.absorbed && segment.length > 0) {
      Segment head = segment;
      head.length = std::min(segment.length, limit - n_queries_);
      add_chunk(head);
      segment.first_row += head.length;
      segment.position += head.length;
      segment.length -= head.length;
      if (n_queries_ == limit) run_pass(maps, queries, cache, out);
    }
  }
  if (n_queries_ > 0) run_pass(maps, queries, cache, out);
}

void AbsorbedAttention::add_chunk(const Segment& segment) {
  chunks_.push_back({segment, n_queries_});
  n_queries_ += segment.length;
}

void AbsorbedAttention::run_pass(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
                                 float* out) {
  const auto rows = static_cast<size_t>(n_queries_ * dims_.heads);
  rows_.at_least((rows + kPanel) * static_cast<size_t>(width_));  // blocks are padded to whole vectors
  mixed_.at_least(rows * static_cast<size_t>(latent_));
  const size_t tile =
      static_cast<size_t>(kKeyTile + kPanel + kPanel) * static_cast<size_t>(width_) + kScoreFloats;
  const size_t panel = static_cast<size_t>(std::max(dims_.latent, dims_.nope) + n_queries_) * kPanel;
  for (Scratch& worker : workers_) worker.at_least(std::max(tile, panel));
  absorb(maps, queries);
  cut_into_blocks();
  const auto part_bytes = static_cast<int64_t>(parts_.size() * kPanel * sizeof(float)) * latent_;
  const bool few_blocks = static_cast<int64_t>(blocks_.size()) < 4 * pool_.size();
  if (few_blocks && pool_.size() > 1 && part_bytes <= kMaxPartBytes) {
    attend_in_parts(cache);
  } else {
    attend(cache);
  }
  unabsorb(maps, out);
  chunks_.clear();
  n_queries_ = 0;
}

// How many panels of a head one thread takes in a row.
int AbsorbedAttention::panels_of_item(const PanelMatrices& map) const {
  return std::clamp(dims_.heads * map.panels() / (kItemsPerThread * pool_.size()), 1, kMostPanelsOfItem);
}

// rows_ = [q_nope · k_b | rotated q_rope], both padded.
void AbsorbedAttention::absorb(const LatentMaps& maps, const Queries& queries) {
  const PanelMatrices& k_b = maps.absorb();
  const int run = panels_of_item(k_b), groups = (k_b.panels() + run - 1) / run;
  const int64_t query = static_cast<int64_t>(dims_.heads) * dims_.query_width();
  const int64_t row = static_cast<int64_t>(dims_.heads) * width_;
  float* rows = rows_.data();
  pool_.parallel_for(static_cast<int64_t>(dims_.heads) * groups, [&](int64_t item, int worker) {
    const int head = static_cast<int>(item / groups);
    const int group = static_cast<int>(item % groups);
    if (group == 0) rotate_head(queries, head);
    float* wide = workers_[static_cast<size_t>(worker)].data();
    const int last = std::min(k_b.panels(), (group + 1) * run);
    for (int panel = group * run; panel < last; ++panel) {
      const bool widened = n_queries_ > kFewRows;
      if (widened) k_b.widen(primitives_, head, panel, wide);
      for (const Chunk& chunk : chunks_) {
        const float* a = queries.data + chunk.segment.first_row * query + head * dims_.query_width();
        float* c = rows + chunk.first_query * row + head * width_ + panel * kPanel;
        Product product{a, query, 1, 0, c, row, static_cast<int>(chunk.segment.length), 0, dims_.nope, false};
        if (widened) {
          product.ldb = product.n = k_b.panel_stride(panel);
          primitives_.multiply(product, wide);
        } else {
          k_b.multiply(primitives_, head, panel, product);
        }
      }
    }
  });
}

void AbsorbedAttention::rotate_head(const Queries& queries, int head) {
  const int pairs = dims_.rope / 2;
  for (const Chunk& chunk : chunks_) {
    for (int64_t i = 0; i < chunk.segment.length; ++i) {
      const int64_t row = chunk.segment.first_row + i;
      const float* q = queries.data + (row * dims_.heads + head) * dims_.query_width() + dims_.nope;
      float* dst = rows_.data() + ((chunk.first_query + i) * dims_.heads + head) * width_ + latent_;
      rotate(q, queries.cos + row * pairs, queries.sin + row * pairs, pairs, dst);
      std::fill(dst + dims_.rope, dst + EntryShape::padded(dims_.rope), 0.0f);
    }
  }
}

// The blocks of the pass, and their parts, those that take longest first.
void AbsorbedAttention::cut_into_blocks() {
  blocks_.clear();
  parts_.clear();
  for (const Chunk& chunk : chunks_) {
    const int64_t rows = chunk.segment.length * dims_.heads;
    for (int64_t first = 0; first < rows; first += kPanel) {
      const int n = static_cast<int>(std::min<int64_t>(kPanel, rows - first));
      const int64_t visible = chunk.segment.position + (first + n - 1) / dims_.heads + 1;
      int64_t index = 0;
      for (int64_t begin = 0; begin < visible; begin = split_end(begin)) {
        const int64_t end = std::min(split_end(begin), visible);
        parts_.push_back({static_cast<int>(blocks_.size()), begin, end, index++});
      }
      blocks_.push_back({&chunk, first, n});
    }
  }
}

// The block with its queries transposed into `queries`, and nothing gathered.
RowBlock AbsorbedAttention::open_block(const Block& block, float* queries) const {
  RowBlock rows;
  rows.queries = queries;
  rows.rows = block.rows;
  rows.ld_out = latent_;
  for (int r = 0; r < block.rows; ++r) {
    rows.visible[r] = block.chunk->segment.position + (block.first + r) / dims_.heads + 1;
  }
  return rows;
}

void AbsorbedAttention::attend_range(const CacheLayer& cache, const Segment& segment, int64_t begin,
                                     int64_t end, float* tile, RowBlock& rows) const {
  float* scores = tile + static_cast<int64_t>(kKeyTile) * width_;
  rows.clear(latent_);
  for (int64_t first = begin; first < end; first += kKeyTile) {
    const int tokens = static_cast<int>(std::min<int64_t>(kKeyTile, end - first));
    decode_tile(primitives_, cache, segment, first, tokens, tile);
    attend_tile(primitives_, {tile, width_, width_, tile, width_, kPanel, latent_, first, tokens},
                dims_.scale, scores, rows);
  }
}

// One thread a block: for many blocks.
void AbsorbedAttention::attend(const CacheLayer& cache) {
  const auto n = static_cast<int64_t>(blocks_.size());
  pool_.parallel_for(n, [&](int64_t item, int worker) {
    const Block& block = blocks_[static_cast<size_t>(n - 1 - item)];  // late queries see most
    float* scratch = workers_[static_cast<size_t>(worker)].data();
    float* queries = scratch + static_cast<int64_t>(kKeyTile) * width_ + kScoreFloats;
    RowBlock all = open_block(block, queries);
    RowBlock part = all;
    all.out = mixed_.data() + row_of(block) * latent_;
    part.out = queries + kQueryFloats * width_;
    primitives_.transpose(rows_.data() + row_of(block) * width_, width_, all.padded_rows(), width_, queries,
                          kPanel);
    all.clear(latent_);
    for (int64_t begin = 0; begin < all.last_visible(); begin = split_end(begin)) {
      const int64_t end = std::min(split_end(begin), all.last_visible());
      attend_range(cache, block.chunk->segment, begin, end, scratch, part);
      merge(part, latent_, all);
    }
    normalise(latent_, all);
  });
}

// One thread a part of a block, then the parts are merged in order: the same additions as in `attend`.
void AbsorbedAttention::attend_in_parts(const CacheLayer& cache) {
  const int64_t part_floats = static_cast<int64_t>(kPanel) * latent_;
  float* parted = parted_.at_least(parts_.size() * static_cast<size_t>(part_floats));
  part_rows_.resize(parts_.size());
  std::vector<int64_t> order(parts_.size());
  std::vector<int64_t> first_part(blocks_.size());
  for (size_t i = 0; i < parts_.size(); ++i) {
    order[i] = static_cast<int64_t>(i);
    if (parts_[i].index == 0) first_part[static_cast<size_t>(parts_[i].block)] = static_cast<int64_t>(i);
  }
  const auto cost = [&](int64_t i) {
    const Part& part = parts_[static_cast<size_t>(i)];
    return (part.end - part.begin) * blocks_[static_cast<size_t>(part.block)].rows;
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
  pool_.parallel_for(static_cast<int64_t>(parts_.size()), [&](int64_t item, int worker) {
    const int64_t index = order[static_cast<size_t>(item)];
    const Part& part = parts_[static_cast<size_t>(index)];
    const Block& block = blocks_[static_cast<size_t>(part.block)];
    float* scratch = workers_[static_cast<size_t>(worker)].data();
    float* queries = scratch + static_cast<int64_t>(kKeyTile) * width_ + kScoreFloats;
    RowBlock& rows = part_rows_[static_cast<size_t>(index)];
    rows = open_block(block, queries);
    rows.out = parted + index * part_floats;
    primitives_.transpose(rows_.data() + row_of(block) * width_, width_, rows.padded_rows(), width_, queries,
                          kPanel);
    attend_range(cache, block.chunk->segment, part.begin, part.end, scratch, rows);
  });
  pool_.parallel_for(static_cast<int64_t>(blocks_.size()), [&](int64_t item, int) {
    const Block& block = blocks_[static_cast<size_t>(item)];
    auto index = static_cast<size_t>(first_part[static_cast<size_t>(item)]);
    RowBlock all = part_rows_[index];
    all.out = mixed_.data() + row_of(block) * latent_;
    all.clear(latent_);
    for (; index < parts_.size() && parts_[index].block == item; ++index)
      merge(part_rows_[index], latent_, all);
    normalise(latent_, all);
  });
}

// out = mixed latents · v_b.
void AbsorbedAttention::unabsorb(const LatentMaps& maps, float* out) {
  const PanelMatrices& v_b = maps.unabsorb();
  const int run = panels_of_item(v_b), groups = (v_b.panels() + run - 1) / run;
  pool_.parallel_for(static_cast<int64_t>(dims_.heads) * groups, [&](int64_t item, int worker) {
    const int head = static_cast<int>(item / groups);
    const int group = static_cast<int>(item % groups);
    float* scratch = workers_[static_cast<size_t>(worker)].data();
    const int last = std::min(v_b.panels(), (group + 1) * run);
    for (int panel = group * run; panel < last; ++panel) unabsorb_panel(v_b, head, panel, scratch, out);
  });
}

void AbsorbedAttention::unabsorb_panel(const PanelMatrices& v_b, int head, int panel, float* scratch,
                                       float* out) {
  const int64_t row = static_cast<int64_t>(dims_.heads) * latent_;
  float* values = scratch;
  float* wide = values + n_queries_ * kPanel;
  const auto m = static_cast<int>(n_queries_);
  Product product{mixed_.data() + head * latent_, row, 1, 0, values, kPanel, m, 0, dims_.latent, false};
  if (m > kFewRows) {
    v_b.widen(primitives_, head, panel, wide);
    product.ldb = product.n = v_b.panel_stride(panel);
    primitives_.multiply(product, wide);
  } else {
    v_b.multiply(primitives_, head, panel, product);
  }
  for (const Chunk& chunk : chunks_) {
    for (int64_t i = 0; i < chunk.segment.length; ++i) {
      const float* src = values + (chunk.first_query + i) * kPanel;
      float* dst = out + ((chunk.segment.first_row + i) * dims_.heads + head) * dims_.value + panel * kPanel;
      std::copy_n(src, v_b.panel_columns(panel), dst);
    }
  }
}

}  // namespace trimaran
