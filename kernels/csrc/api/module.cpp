#include "api/module.h"

NB_MODULE(_native, module) {
  module.doc() = "Native kernels of Trimaran.";
  bind_core(module);
  bind_attention(module);
  bind_hop(module);
  bind_client(module);
  bind_decoder(module);
}
