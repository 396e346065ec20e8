// Packed weights times quantised activations with AVX-512: 16 rows a vector.
#pragma once

#include "isa/primitives.h"

namespace trimaran::avx512 {

// Each sets the entry of every packed type: with VNNI's dot products, and with what AVX512BW has.
void fill_vnni_dots(DotFn* table);
void fill_bw_dots(DotFn* table);

}  // namespace trimaran::avx512
