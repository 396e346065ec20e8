// Naive attention on matrix tiles: as ExpandedAttention, with keys, values, queries and weights rounded to
// bf16.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cache_layer.h"
#include "attention/flash.h"
#include "attention/items.h"
#include "attention/maps.h"
#include "attention/scratch.h"
#include "runtime/thread_pool.h"

namespace trimaran {

class TiledAttention {
 public:
  // `primitives` has tiles.
  TiledAttention(ThreadPool& pool, const AttentionPrimitives& primitives, const MlaDims& dims);

  // Fills the rows of those of `segments` that are not absorbed in out: [tokens, heads, value]. What a row
  // gets depends on its own query and its own tokens only, to the bit.
  void run(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
           const std::vector<Segment>& segments, float* out);

 private:
  // Up to kPanel queries, and what they have gathered: out[value][kPanel] = Σ weight · value, relative to
  // peak.
  struct Block {
    const uint16_t* queries;  // right side: [key width, kPanel]
    float* out;
    int rows;
    int64_t first_visible;  // how many tokens row 0 sees; each row sees one more
    float peak[kPanel];
    float sum[kPanel];
  };
  // Expanded tokens, left sides: keys [kKeyTile, key width] and values [value, kKeyTile].
  struct Tile {
    const uint16_t* keys;
    const uint16_t* values;
    int64_t first;
    int tokens;
  };
  // A worker's memory. Words are bf16 in tiles.
  struct Views {
    uint16_t* k_b;      // right side: [latent, nope]
    uint16_t* v_b;      // right side: [latent, value]
    uint16_t* latents;  // left side: [kKeyTile, latent]
    uint16_t* keys;     // of kTiles tiles
    uint16_t* values;   // of kTiles tiles
    uint16_t* weights;  // right side: [kKeyTile, kPanel]
    uint16_t* queries;  // of each block
    float* panel;       // a widened panel on its way
    float* wide;        // [latent, nope]: k_b on its way
    float* entries;     // [kKeyTile, entry width]
    float* expanded;    // [kKeyTile, the wider of key and value]
    float* turned;      // [value, kKeyTile]
    float* scores;      // [kKeyTile, kPanel]
    float* rows;        // [kPanel, the wider of key and value]: queries or results on their way
    float* columns;     // [key width, kPanel]
    float* out;         // of each block
  };

  Views carve(int64_t n, Carver& memory) const;
  void run_item(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
                const ExpandedItem& item, const Views& views, std::vector<Block>& blocks, float* out) const;
  void pack_maps(const LatentMaps& maps, int head, const Views& views) const;
  void open_block(const Queries& queries, const ExpandedItem& item, int64_t first, const Views& views,
                  Block& block) const;
  Tile expand(const CacheLayer& cache, const Segment& segment, int64_t first, int tokens, const Views& views,
              int place) const;
  void attend(const Tile& tile, const Views& views, Block& block) const;
  void write(const ExpandedItem& item, int64_t first, const Block& block, const Views& views,
             float* out) const;

  ThreadPool& pool_;
  const AttentionPrimitives& primitives_;
  const AttentionTiles& tiles_;
  const MlaDims dims_;
  const int latent_;  // padded to eights
  const int nope_;    // padded to whole tiles, as value_
  const int value_;
  const int entry_width_;
  const int key_width_;     // nope_ and the padded rotated key
  const int latent_depth_;  // tiles
  const int key_depth_;
  std::vector<Scratch> workers_;
  std::vector<std::vector<Block>> blocks_;  // per worker
};

}  // namespace trimaran
