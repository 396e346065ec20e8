#include "generic/generic.h"

#include "generic/activate.h"
#include "generic/attention.h"
#include "generic/packed.h"
#include "quant/decode_table.h"

namespace trimaran::generic {
namespace {

void accumulate(const Panel& panel, float* acc) {
  for (int row = 0; row < panel.rows; ++row) {
    const float* w = panel.w + row * panel.ldw;
    for (int token = 0; token < panel.tokens; ++token) {
      const float* x = panel.x[token];
      float* lanes = acc + (static_cast<int64_t>(row) * panel.tokens + token) * kLanes;
      for (int64_t c = 0; c < panel.k; c += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += w[c + lane] * x[c + lane];
      }
    }
  }
}

Primitives make() {
  Primitives p{"generic", {}, accumulate, quantize, activate, {}, &attention_primitives(), nullptr};
  fill_scalar_decoders(p.decode);
  fill_dots(p.dot);
  return p;
}

}  // namespace

const Primitives& primitives() {
  static const Primitives instance = make();
  return instance;
}

}  // namespace trimaran::generic
