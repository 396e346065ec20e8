// AMX implementation: bf16 matrix tiles for many tokens, AVX-512 VNNI for the rest.
#pragma once

#include "isa/primitives.h"

namespace trimaran::amx {

const Primitives& primitives();

}  // namespace trimaran::amx
