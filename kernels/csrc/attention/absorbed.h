// Absorbed attention: k_b goes into the query and v_b behind the softmax; all heads share each cache entry.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cache_layer.h"
#include "attention/maps.h"
#include "attention/scratch.h"
#include "attention/splits.h"
#include "runtime/thread_pool.h"

namespace trimaran {

class AbsorbedAttention {
 public:
  AbsorbedAttention(ThreadPool& pool, const AttentionPrimitives& primitives, const MlaDims& dims);

  // Fills the rows of the absorbed ones of `segments` in out: [tokens, heads, value].
  void run(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
           const std::vector<Segment>& segments, float* out);

 private:
  // Consecutive queries of one segment that are computed in this pass.
  struct Chunk {
    Segment segment;      // cut to the chunk's queries
    int64_t first_query;  // in the pass
  };
  // Up to kPanel consecutive (query, head) rows of one chunk.
  struct Block {
    const Chunk* chunk;
    int64_t first;  // row in the chunk
    int rows;
  };
  // Tokens [begin, end) for one block.
  struct Part {
    int block;
    int64_t begin;
    int64_t end;
    int64_t index;  // which of the block's parts
  };

  void run_pass(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache, float* out);
  void absorb(const LatentMaps& maps, const Queries& queries);
  void rotate_head(const Queries& queries, int head);
  void attend(const CacheLayer& cache);
  void attend_in_parts(const CacheLayer& cache);
  void unabsorb(const LatentMaps& maps, float* out);
  void unabsorb_panel(const PanelMatrices& v_b, int head, int panel, float* scratch, float* out);
  int panels_of_item(const PanelMatrices& map) const;
  void add_chunk(const Segment& segment);
  void cut_into_blocks();
  int64_t row_of(const Block& block) const { return block.chunk->first_query * dims_.heads + block.first; }
  RowBlock open_block(const Block& block, float* queries) const;
  void attend_range(const CacheLayer& cache, const Segment& segment, int64_t begin, int64_t end, float* tile,
                    RowBlock& rows) const;

  ThreadPool& pool_;
  const AttentionPrimitives& primitives_;
  const MlaDims dims_;
  const int latent_;  // padded
  const int width_;   // of a decoded entry

  std::vector<Chunk> chunks_;
  std::vector<Block> blocks_;
  std::vector<Part> parts_;
  int64_t n_queries_ = 0;
  Scratch rows_;   // [query, head, width]: absorbed queries
  Scratch mixed_;  // [query, head, latent]: mixed latents
  Scratch parted_;
  std::vector<RowBlock> part_rows_;
  std::vector<Scratch> workers_;
};

}  // namespace trimaran
