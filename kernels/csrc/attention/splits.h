// Where a long context is cut, so that several threads share one request.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/flash.h"

namespace trimaran {

// End of the part that starts at position `begin`: 128 tokens at first, from 2K on a sixteenth of what lies
// before it, so that a request of 128K tokens has about 90 parts. The borders are the same for every query
// and every number of threads, and so is the order of additions.
inline int64_t split_end(int64_t begin) {
  const int64_t grown = begin / 16 / kKeyTile * kKeyTile;
  return begin + std::max<int64_t>(2 * kKeyTile, grown);
}

}  // namespace trimaran
