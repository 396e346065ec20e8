// Portable scalar implementation: the reference that every other one is compared with.
#pragma once

#include "isa/primitives.h"

namespace trimaran::generic {

const Primitives& primitives();

}  // namespace trimaran::generic
