// Multi-head latent attention over the paged cache (arXiv 2405.04434 §2.1), both forms.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "attention/absorbed.h"
#include "attention/expanded.h"
#include "attention/tiled.h"

namespace trimaran {

// Scratch memory and threads that all layers share. Calls run one after another.
class Mla {
 public:
  // Throws KernelError on a dimension below 1 or an odd rope.
  Mla(ThreadPool& pool, const AttentionPrimitives& primitives, const MlaDims& dims);

  const MlaDims& dims() const { return dims_; }

  // out: [tokens, heads, value], the rows of the segments are written. A row of an absorbed segment depends
  // on its query and the entries that it sees only, to the bit: not on threads, batch or chunking. The same
  // holds for rows of the other form.
  void attend(const LatentMaps& maps, const Queries& queries, const CacheLayer& cache,
              const std::vector<Segment>& segments, float* out);

 private:
  const MlaDims dims_;
  std::mutex callers_;
  AbsorbedAttention absorbed_;
  ExpandedAttention expanded_;
  std::unique_ptr<TiledAttention> tiled_;  // where there are matrix tiles
};

}  // namespace trimaran
