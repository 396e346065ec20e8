// AVX2 + FMA + F16C implementations, without and with AVX-VNNI.
#pragma once

#include "isa/primitives.h"

namespace trimaran::avx2 {

const Primitives& primitives();
const Primitives& vnni_primitives();

}  // namespace trimaran::avx2
