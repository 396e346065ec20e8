#include "amx/amx.h"

#if defined(__x86_64__)

#include "amx/attention.h"
#include "amx/tiles.h"
#include "avx512/avx512.h"

namespace trimaran::amx {
namespace {

Primitives make() {
  Primitives p = avx512::vnni_primitives();
  p.name = "amx";
  p.attention = &attention_primitives();
  p.tiles = &tile_primitives();
  return p;
}

}  // namespace

const Primitives& primitives() {
  static const Primitives instance = make();
  return instance;
}

}  // namespace trimaran::amx

#endif
