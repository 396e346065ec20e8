#pragma once

#include "isa/primitives.h"

namespace trimaran::avx2 {

void accumulate(const Panel& panel, float* acc);

}  // namespace trimaran::avx2
