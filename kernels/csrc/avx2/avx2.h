// AVX2 + FMA + F16C implementation.
#pragma once

#include "isa/primitives.h"

namespace trimaran::avx2 {

const Primitives& primitives();

}  // namespace trimaran::avx2
