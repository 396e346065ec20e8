// Naive attention: latents are expanded into keys and values of each head, a tile at a time.
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

class ExpandedAttention {
 public:
  ExpandedAttention(ThreadPool& pool, const AttentionPrimitives& primitives, const MlaDims& dims);

  // Fills the rows of those of `segments` that are not absorbed in out: [tokens, heads, value].
  void run(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
           const std::vector<Segment>& segments, float* out);

 private:
  // A worker's memory.
  struct Views {
    float* k_b;      // [nope panel][latent][kPanel]
    float* v_b;      // [value panel][latent][kPanel]
    float* panel;    // [nope or latent][kPanel]: a widened panel on its way
    float* entries;  // [kKeyTile][entry width]
    float* keys;     // [place][kKeyTile][key width]: of several tiles
    float* values;   // [place][value panel][kKeyTile][kPanel]
    float* scores;   // [kKeyTile][kPanel]
    float* rows;     // [kPanel][key width]: queries on their way
    float* queries;  // [block][key width][kPanel]
    float* out;      // [query][value]
  };

  Views carve(int64_t n, Carver& memory) const;
  void run_item(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
                const ExpandedItem& item, const Views& views, std::vector<RowBlock>& blocks) const;
  void write(const ExpandedItem& item, const Views& views, float* out) const;
  void widen_maps(const LatentMaps& maps, int head, const Views& views) const;
  void open_block(const Queries& queries, const ExpandedItem& item, int64_t first, const Views& views,
                  RowBlock& block) const;
  KeyTile expand(int64_t first, int tokens, const Views& views, int place) const;

  ThreadPool& pool_;
  const AttentionPrimitives& primitives_;
  const MlaDims dims_;
  const int latent_;  // padded, as nope_ and value_
  const int nope_;
  const int value_;
  const int entry_width_;
  const int key_width_;
  std::vector<ExpandedItem> items_;
  std::vector<Scratch> workers_;
  std::vector<std::vector<RowBlock>> blocks_;  // per worker
};

}  // namespace trimaran
