// Packed weights times quantised activations with AVX2: 8 rows a vector.
#pragma once

#include "isa/primitives.h"

namespace trimaran::avx2 {

void quantize(const float* x, int64_t columns, int64_t first_group, const QuantizedSlot& slot);

// Sets the entry of each packed type.
void fill_dots(DotFn* table);

}  // namespace trimaran::avx2
