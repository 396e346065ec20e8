// Packed weights times quantised activations, one number at a time: the reference, and the way of CPUs
// without a kernel of their own.
#pragma once

#include "isa/primitives.h"

namespace trimaran::generic {

void quantize(const float* x, int64_t columns, int64_t first_group, const QuantizedSlot& slot);

// Sets the entry of each packed type.
void fill_dots(DotFn* table);

}  // namespace trimaran::generic
