// What the expanded form shares out among threads: queries of one head that share an expansion.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cache_layer.h"
#include "attention/maps.h"

namespace trimaran {

// Queries [first, first + n) of a segment, for one head.
struct ExpandedItem {
  const Segment* segment;
  int head;
  int64_t first;
  int64_t n;

  int64_t visible() const { return segment->position + first + n; }
};

// The items of those segments that are not absorbed, those that take longest first: for all threads first the
// heads, then ranges of queries, each of which expands anew.
std::vector<ExpandedItem> cut_into_items(const std::vector<Segment>& segments, int heads, int threads);

// One query of the item, rotated: its parts padded with zeros to `nope` and key_width - nope floats.
void gather_query(const Queries& queries, const MlaDims& dims, const ExpandedItem& item, int64_t index,
                  int nope, int key_width, float* dst);

}  // namespace trimaran
