// Scalar row decoders of every type, by GgmlType.
#pragma once

#include "isa/primitives.h"

namespace trimaran {

// Fills a table of kTypeSlots entries.
void fill_scalar_decoders(DecodeFn* table);

}  // namespace trimaran
