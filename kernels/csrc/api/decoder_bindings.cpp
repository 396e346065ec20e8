// Python binding of whole layers.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>

#include "api/arrays.h"
#include "api/attention_arrays.h"
#include "api/module.h"
#include "decoder/decoder.h"
#include "decoder/layer.h"
#include "hop/call_gate.h"

namespace trimaran::api {
namespace {

constexpr int kTimes = sizeof(LayerTimes) / sizeof(int64_t);

std::vector<float> copy_floats(nb::handle object, const char* argument) {
  const ArrayView view = view_array(object, argument, {Element::f32}, 1);
  return {floats(view), floats(view) + view.size()};
}

void make_layer(DecoderLayer* self, ThreadPool& pool, int index, AttentionLayer& attention,
                nb::handle input_norm, nb::handle post_norm, float eps, Gate* gate, ExpertEngine* always) {
  new (self) DecoderLayer(pool, {index, &attention, copy_floats(input_norm, "input_norm"),
                                 copy_floats(post_norm, "post_norm"), eps, gate, always});
}

// The layers' caches. Their pages are numbered alike.
std::vector<CacheLayer> caches_of(const Decoder& decoder, const std::vector<LatentPages*>& pages) {
  if (pages.size() != decoder.layers().size()) {
    throw KernelError("pages: of " + std::to_string(pages.size()) + " layers, need " +
                      std::to_string(decoder.layers().size()));
  }
  // nanobind takes a None within a list for a null pointer.
  if (std::find(pages.begin(), pages.end(), nullptr) != pages.end()) {
    throw KernelError("pages: those of a layer are missing");
  }
  std::vector<CacheLayer> caches;
  for (size_t i = 0; i < pages.size(); ++i) {
    const AttentionLayer& attention = decoder.layers()[i]->attention();
    const CacheLayer& cache = pages[i]->layer;
    check_dims(attention.mla(), attention.maps(), cache);
    const CacheLayer& first = pages[0]->layer;
    if (cache.n_pages != first.n_pages || cache.page_tokens != first.page_tokens) {
      throw KernelError("pages: layers have different numbers of them");
    }
    caches.push_back(cache);
  }
  return caches;
}

void check_experts(const Decoder& decoder, const hop::CallGate* experts) {
  if (experts == nullptr) {
    if (decoder.is_routed()) throw KernelError("experts: layers need them");
    return;
  }
  if (experts->dims().hidden != decoder.hidden()) throw KernelError("experts: have another hidden size");
  for (const DecoderLayer* layer : decoder.layers()) {
    if (layer->is_routed() && layer->top_k() != experts->dims().top_k) {
      throw KernelError("experts: take " + std::to_string(experts->dims().top_k) +
                        " of a token, the gate gives " + std::to_string(layer->top_k()));
    }
  }
}

std::pair<int64_t, int32_t> run(Decoder& decoder, nb::handle x_object, nb::handle cos, nb::handle sin,
                                nb::handle slots, const std::vector<LatentPages*>& pages, nb::handle segments,
                                nb::handle page_table, hop::CallGate* experts, nb::handle times_object,
                                nb::handle stop_object) {
  const ArrayView x = view_array(x_object, "x", {Element::f32}, 2, true);
  check_length(x, "x", 1, decoder.hidden());
  const std::vector<CacheLayer> caches = caches_of(decoder, pages);
  const ArrayView times = view_array(times_object, "times", {Element::i64}, 2, true);
  check_length(times, "times", 0, static_cast<int64_t>(caches.size()));
  check_length(times, "times", 1, kTimes);
  const ArrayView stop = view_array(stop_object, "stop", {Element::i32}, 1);
  check_length(stop, "stop", 0, 1);
  check_experts(decoder, experts);
  const int64_t n = x.shape[0];
  const StepArrays step(cos, sin, slots, segments, page_table, caches.front(), n);
  const nb::gil_scoped_release unlocked;
  const Decoder::Result result =
      decoder.run(static_cast<float*>(x.data), step.input(n), caches, experts,
                  static_cast<LayerTimes*>(times.data), static_cast<const int32_t*>(stop.data));
  return {result.layers, result.status};
}

}  // namespace
}  // namespace trimaran::api

void bind_decoder(nanobind::module_& m) {
  using namespace trimaran::api;
  nb::class_<trimaran::DecoderLayer>(m, "DecoderLayer")
      .def("__init__", &make_layer, nb::arg("pool"), nb::arg("index"), nb::arg("attention"),
           nb::arg("input_norm"), nb::arg("post_norm"), nb::arg("eps"), nb::arg("gate").none(),
           nb::arg("always").none(), nb::keep_alive<1, 2>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 8>(),
           nb::keep_alive<1, 9>());
  nb::class_<trimaran::Decoder>(m, "Decoder")
      .def(nb::init<std::vector<trimaran::DecoderLayer*>>(), nb::arg("layers"), nb::keep_alive<1, 2>())
      .def("__call__", &run, nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("slots"), nb::arg("pages"),
           nb::arg("segments"), nb::arg("page_table"), nb::arg("experts").none(), nb::arg("times"),
           nb::arg("stop"));
}
