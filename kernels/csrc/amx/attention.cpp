#include "amx/attention.h"

#if defined(__x86_64__)

#include "avx512/attention.h"

namespace trimaran::amx {
namespace {

AttentionPrimitives make() {
  AttentionPrimitives p = avx512::attention_primitives();
  p.name = "amx";
  p.tiles = &attention_tiles();
  return p;
}

}  // namespace

const AttentionPrimitives& attention_primitives() {
  static const AttentionPrimitives instance = make();
  return instance;
}

}  // namespace trimaran::amx

#endif
