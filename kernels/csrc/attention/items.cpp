#include "attention/items.h"

#include <algorithm>

namespace trimaran {
namespace {

constexpr int64_t kFewestQueries = 128;  // that share an expansion, when there are threads to spare

}  // namespace

std::vector<ExpandedItem> cut_into_items(const std::vector<Segment>& segments, int heads, int threads) {
  std::vector<ExpandedItem> items;
  int64_t all_heads = 0;
  for (const Segment& segment : segments) all_heads += segment.absorbed ? 0 : heads;
  if (all_heads == 0) return items;
  const int64_t wanted = all_heads >= threads ? 1 : (2 * threads + all_heads - 1) / all_heads;
  for (const Segment& segment : segments) {
    if (segment.absorbed) continue;
    const int64_t ranges = std::clamp<int64_t>(segment.length / kFewestQueries, 1, wanted);
    const int64_t share = (segment.length + ranges - 1) / ranges;
    const int64_t n = (share + kPanel - 1) / kPanel * kPanel;
    for (int64_t first = 0; first < segment.length; first += n) {
      for (int head = 0; head < heads; ++head) {
        items.push_back({&segment, head, first, std::min(n, segment.length - first)});
      }
    }
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const ExpandedItem& a, const ExpandedItem& b) { return a.visible() > b.visible(); });
  return items;
}

void gather_query(const Queries& queries, const MlaDims& dims, const ExpandedItem& item, int64_t index,
                  int nope, int key_width, float* dst) {
  const int pairs = dims.rope / 2;
  const int64_t row = item.segment->first_row + item.first + index;
  const float* q = queries.data + (row * dims.heads + item.head) * dims.query_width();
  std::fill(std::copy_n(q, dims.nope, dst), dst + nope, 0.0f);
  rotate(q + dims.nope, queries.cos + row * pairs, queries.sin + row * pairs, pairs, dst + nope);
  std::fill(dst + nope + dims.rope, dst + key_width, 0.0f);
}

}  // namespace trimaran
