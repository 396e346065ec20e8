// A quantised matrix as it lies in a model file, or packed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/types.h"

namespace trimaran {

// `size` bytes at `data`: rows of whole blocks, one after another, or stripes of packed/format.h. Not owned.
struct Matrix {
  GgmlType type;
  const uint8_t* data;
  size_t size;
  bool packed = false;
};

}  // namespace trimaran
