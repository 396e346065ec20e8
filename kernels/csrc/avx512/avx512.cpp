#include "avx512/avx512.h"

#if defined(__x86_64__)

#include "avx2/avx2.h"
#include "avx512/activate.h"
#include "avx512/attention.h"
#include "avx512/packed.h"

namespace trimaran::avx512 {
namespace {

Primitives make(const char* name, void (*fill_dots)(DotFn*)) {
  Primitives p = avx2::primitives();
  p.name = name;
  p.activate = activate;
  p.attention = &attention_primitives();
  fill_dots(p.dot);
  return p;
}

}  // namespace

const Primitives& primitives() {
  static const Primitives instance = make("avx512", fill_bw_dots);
  return instance;
}

const Primitives& vnni_primitives() {
  static const Primitives instance = make("avx512_vnni", fill_vnni_dots);
  return instance;
}

}  // namespace trimaran::avx512

#endif
