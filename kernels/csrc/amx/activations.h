// Activations as terms of bf16, laid out for tiles.
#pragma once

#include <cstdint>

namespace trimaran::amx {

// As TilePrimitives::round. The error of one term is at most 2^-9 of a number, of two 2^-17.
void round(const float* x, int group, int terms, uint8_t* step);

}  // namespace trimaran::amx
