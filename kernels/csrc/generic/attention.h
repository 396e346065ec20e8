// Portable attention primitives: the reference of the others.
#pragma once

#include "attention/primitives.h"

namespace trimaran::generic {

const AttentionPrimitives& attention_primitives();

}  // namespace trimaran::generic
