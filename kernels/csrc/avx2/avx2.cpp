#include "avx2/avx2.h"

#if defined(__x86_64__)

#include "avx2/activate.h"
#include "avx2/attention.h"
#include "avx2/decode.h"
#include "avx2/packed.h"
#include "avx2/panel.h"
#include "quant/decode_table.h"

namespace trimaran::avx2 {
namespace {

Primitives make(const char* name, void (*fill_dot_products)(DotFn*)) {
  Primitives p{name, {}, accumulate, quantize, activate, {}, &attention_primitives(), nullptr};
  fill_scalar_decoders(p.decode);  // F32 keeps it: a copy
  fill_legacy_decoders(p.decode);
  fill_k_decoders(p.decode);
  fill_grid_decoders(p.decode);
  fill_dot_products(p.dot);
  return p;
}

}  // namespace

const Primitives& primitives() {
  static const Primitives instance = make("avx2", fill_dots);
  return instance;
}

const Primitives& vnni_primitives() {
  static const Primitives instance = make("avx_vnni", fill_vnni_dots);
  return instance;
}

}  // namespace trimaran::avx2

#endif
