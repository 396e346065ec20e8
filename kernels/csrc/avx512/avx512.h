// AVX-512 implementations (F, BW, VL), without and with VNNI. What they do not speed up is AVX2's.
#pragma once

#include "isa/primitives.h"

namespace trimaran::avx512 {

const Primitives& primitives();
const Primitives& vnni_primitives();

}  // namespace trimaran::avx512
