// Arguments that bindings of attention share: a layer's pages, and a step's tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "api/arrays.h"
#include "attention/cache_layer.h"
#include "attention/layer.h"
#include "attention/maps.h"
#include "attention/mla.h"

namespace trimaran::api {

// One layer's pages, checked once.
struct LatentPages {
  ArrayView raw;
  CacheLayer layer;
};

inline const float* floats(const ArrayView& view) { return static_cast<const float*>(view.data); }
inline const int32_t* ints(const ArrayView& view) { return static_cast<const int32_t*>(view.data); }

// These throw KernelError.
void check_angles(const ArrayView& cos, const ArrayView& sin, int64_t rows, int rope);
void check_slots(const ArrayView& slots, const CacheLayer& layer);
void check_dims(const Mla& mla, const LatentMaps& maps, const CacheLayer& layer);
// rows: int32 [S, 5]; their pages point into `table`.
std::vector<Segment> segments_of(const ArrayView& rows, const ArrayView& table, const CacheLayer& layer,
                                 int64_t n_rows);

// The arguments of a step's attention, checked.
struct StepArrays {
  StepArrays(nb::handle cos, nb::handle sin, nb::handle slots, nb::handle segments, nb::handle page_table,
             const CacheLayer& layer, int64_t n);

  AttentionInput input(int64_t n) const { return {n, floats(cos), floats(sin), ints(slots), segments}; }

  ArrayView cos;
  ArrayView sin;
  ArrayView slots;
  ArrayView table;
  std::vector<Segment> segments;
};

}  // namespace trimaran::api
