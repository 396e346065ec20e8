// A quantised matrix as it lies in a model file.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/types.h"

namespace trimaran {

// `size` bytes at `data`: rows of whole blocks, one after another. Not owned.
struct Matrix {
  GgmlType type;
  const uint8_t* data;
  size_t size;
};

}  // namespace trimaran
