// Code books of the IQ types.
#pragma once

#include <cstdint>

namespace trimaran {

#include "quant/iq_tables.inl"

}  // namespace trimaran
