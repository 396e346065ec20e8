// Packed weights times quantised activations with AVX2: 8 rows a vector.
#pragma once

#include "isa/primitives.h"

namespace trimaran::avx2 {

void quantize(const float* x, int64_t columns, int64_t first_group, const QuantizedSlot& slot);

// Each sets the entry of every packed type: with what AVX2 has, and with AVX-VNNI's dot products.
void fill_dots(DotFn* table);
void fill_vnni_dots(DotFn* table);

}  // namespace trimaran::avx2
