// Scratch memory that is kept from call to call.
#pragma once

#include <cstddef>
#include <vector>

namespace trimaran {

// At least n elements of any value: unlike resize(), calls that shrink and grow clear nothing twice.
template <class T>
void ensure_size(std::vector<T>& buffer, size_t n) {
  if (buffer.size() < n) buffer.resize(n);
}

}  // namespace trimaran
