// AVX2 row decoders; each function replaces its types' entries of a table by GgmlType.
#pragma once

#include "isa/primitives.h"

namespace trimaran::avx2 {

void fill_legacy_decoders(DecodeFn* table);  // F16, BF16 and the 32-weight block types
void fill_k_decoders(DecodeFn* table);       // Q2_K … Q6_K, IQ4_XS
void fill_grid_decoders(DecodeFn* table);    // IQ1 … IQ3

}  // namespace trimaran::avx2
