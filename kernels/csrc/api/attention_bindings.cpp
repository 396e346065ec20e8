// Python binding of attention over the latent cache, RMS norm and expert routing.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "api/arrays.h"
#include "api/attention_arrays.h"
#include "api/module.h"
#include "attention/gate.h"
#include "attention/layer.h"
#include "attention/maps.h"
#include "attention/mla.h"
#include "attention/norm.h"
#include "isa/isa.h"

namespace trimaran::api {
namespace {

const char* const kFormatNames[kEntryFormats] = {"f32", "bf16", "fp8", "int8"};

EntryFormat format_of(const std::string& name) {
  for (int i = 0; i < kEntryFormats; ++i) {
    if (name == kFormatNames[i]) return static_cast<EntryFormat>(i);
  }
  throw KernelError("kind: \"" + name + "\" is none: use f32, bf16, fp8 or int8");
}

EntryShape entry_shape(const std::string& format, int latent, int rope) {
  const EntryShape shape{format_of(format), latent, rope};
  if (latent < 1 || latent > kLargestEntry) throw KernelError("latent: must be 1 to 4096");
  if (rope < 2 || rope > kLargestEntry || rope % 2 != 0) throw KernelError("rope: must be even, 2 to 4096");
  return shape;
}

void make_pages(LatentPages* self, nb::handle raw_object, const std::string& format, int latent, int rope,
                int page_tokens) {
  ArrayView raw = view_array(raw_object, "raw", {Element::u8}, 1, true);
  const EntryShape shape = entry_shape(format, latent, rope);
  if (page_tokens < 1) throw KernelError("page_tokens: must be at least 1");
  if (reinterpret_cast<uintptr_t>(raw.data) % 4 != 0)
    throw KernelError("raw: need an address that 4 divides");
  const auto page_bytes = static_cast<int64_t>(shape.bytes()) * page_tokens;
  if (raw.size() % page_bytes != 0) {
    throw KernelError("raw: " + std::to_string(raw.size()) + " bytes are no whole number of pages of " +
                      std::to_string(page_bytes));
  }
  const CacheLayer layer{static_cast<uint8_t*>(raw.data), shape, raw.size() / page_bytes, page_tokens};
  new (self) LatentPages{std::move(raw), layer};
}

// Elements of a row of Q8_0 blocks.
int row_elements(const ArrayView& blocks, const char* name) {
  constexpr int64_t bytes = sizeof(BlockQ8_0);
  if (blocks.shape[2] % bytes != 0) {
    throw KernelError(std::string(name) + ": rows of " + std::to_string(blocks.shape[2]) +
                      " bytes are no whole blocks of Q8_0, " + std::to_string(bytes) + " bytes each");
  }
  return static_cast<int>(blocks.shape[2] / bytes * kCodeRows);
}

// Matrices [heads, depth, columns] of floats, or the transposed ones in blocks.
PanelMatrices panels_of(const ArrayView& map, const char* name, bool half) {
  if (map.size() == 0 || map.size() > INT32_MAX)
    throw KernelError(std::string(name) + ": empty or too large");
  const int heads = static_cast<int>(map.shape[0]), rows = static_cast<int>(map.shape[1]);
  if (map.element == Element::u8) {
    return {static_cast<const BlockQ8_0*>(map.data), heads, row_elements(map, name), rows};
  }
  return {{floats(map), map.shape[1] * map.shape[2], map.shape[2], 1},
          heads,
          rows,
          static_cast<int>(map.shape[2]),
          half};
}

void make_maps(LatentMaps* self, nb::handle k_object, nb::handle v_object, bool rounded) {
  const ArrayView k_b = view_array(k_object, "k_b", {Element::f32, Element::u8}, 3);
  const ArrayView v_b = view_array(v_object, "v_b", {Element::f32, Element::u8}, 3);
  check_length(v_b, "v_b", 0, k_b.shape[0]);
  PanelMatrices absorb = panels_of(k_b, "k_b", rounded), unabsorb = panels_of(v_b, "v_b", rounded);
  if (absorb.columns() != unabsorb.depth()) {
    throw KernelError("v_b: maps latents of " + std::to_string(unabsorb.depth()) + ", k_b those of " +
                      std::to_string(absorb.columns()));
  }
  new (self) LatentMaps(static_cast<int>(k_b.shape[0]), std::move(absorb), std::move(unabsorb), rounded);
}

void make_mla(Mla* self, ThreadPool& pool, int heads, int nope, int rope, int latent, int value, float scale,
              const std::string& isa) {
  new (self) Mla(pool, *select_isa(isa).primitives->attention, {heads, nope, rope, latent, value, scale});
}

void store(ThreadPool& pool, LatentPages& pages, nb::handle kv_object, nb::handle weight_object, float eps,
           nb::handle cos_object, nb::handle sin_object, nb::handle slots_object) {
  const CacheLayer& layer = pages.layer;
  const ArrayView kv = view_array(kv_object, "kv", {Element::f32}, 2);
  const ArrayView weight = view_array(weight_object, "weight", {Element::f32}, 1);
  const ArrayView cos = view_array(cos_object, "cos", {Element::f32}, 2);
  const ArrayView sin = view_array(sin_object, "sin", {Element::f32}, 2);
  const ArrayView slots = view_array(slots_object, "slots", {Element::i32}, 1);
  const int64_t n = kv.shape[0];
  check_length(kv, "kv", 1, layer.shape.latent + layer.shape.rope);
  check_length(weight, "weight", 0, layer.shape.latent);
  check_length(slots, "slots", 0, n);
  check_angles(cos, sin, n, layer.shape.rope);
  check_slots(slots, layer);
  const NewEntries entries{floats(kv), n, floats(weight), eps, floats(cos), floats(sin), ints(slots)};
  const nb::gil_scoped_release unlocked;
  store_entries(pool, entries, layer);
}

void attend(Mla& mla, const LatentMaps& maps, nb::handle q_object, nb::handle cos_object,
            nb::handle sin_object, LatentPages& pages, nb::handle segments_object, nb::handle table_object,
            nb::handle out_object) {
  const MlaDims& dims = mla.dims();
  check_dims(mla, maps, pages.layer);
  const ArrayView q = view_array(q_object, "q", {Element::f32}, 2);
  const ArrayView cos = view_array(cos_object, "cos", {Element::f32}, 2);
  const ArrayView sin = view_array(sin_object, "sin", {Element::f32}, 2);
  const ArrayView rows = view_array(segments_object, "segments", {Element::i32}, 2);
  const ArrayView table = view_array(table_object, "page_table", {Element::i32}, 1);
  const ArrayView out = view_array(out_object, "out", {Element::f32}, 2, true);
  check_length(q, "q", 1, static_cast<int64_t>(dims.heads) * dims.query_width());
  check_length(out, "out", 0, q.shape[0]);
  check_length(out, "out", 1, static_cast<int64_t>(dims.heads) * dims.value);
  check_angles(cos, sin, q.shape[0], dims.rope);
  const std::vector<Segment> segments = segments_of(rows, table, pages.layer, q.shape[0]);
  const Queries queries{floats(q), floats(cos), floats(sin)};
  const nb::gil_scoped_release unlocked;
  mla.attend(maps, queries, pages.layer, segments, static_cast<float*>(out.data));
}

std::vector<float> copy_floats(nb::handle object, const char* argument) {
  const ArrayView view = view_array(object, argument, {Element::f32}, 1);
  return {floats(view), floats(view) + view.size()};
}

void make_layer(AttentionLayer* self, ThreadPool& pool, Mla& mla, Linear* query_down,
                const std::optional<nb::object>& query_norm, Linear& query, Linear& kv, nb::handle kv_norm,
                const LatentMaps& maps, Linear& output, float eps) {
  AttentionWeights weights{query_down, {}, &query, &kv, copy_floats(kv_norm, "kv_norm"), &maps, &output, eps};
  if (query_norm) weights.query_norm = copy_floats(*query_norm, "query_norm");
  new (self) AttentionLayer(pool, mla, std::move(weights));
}

void call_layer(AttentionLayer& layer, nb::handle x_object, nb::handle cos, nb::handle sin, nb::handle slots,
                LatentPages& pages, nb::handle segments, nb::handle page_table, nb::handle out_object) {
  check_dims(layer.mla(), layer.maps(), pages.layer);
  const ArrayView x = view_array(x_object, "x", {Element::f32}, 2);
  const ArrayView out = view_array(out_object, "out", {Element::f32}, 2, true);
  const int64_t n = x.shape[0];
  check_length(out, "out", 0, n);
  for (const auto& [view, name] : {std::pair{&x, "x"}, std::pair{&out, "out"}}) {
    check_length(*view, name, 1, layer.hidden());
  }
  const StepArrays step(cos, sin, slots, segments, page_table, pages.layer, n);
  const nb::gil_scoped_release unlocked;
  layer.run(floats(x), step.input(n), pages.layer, static_cast<float*>(out.data));
}

void call_rms_norm(ThreadPool& pool, nb::handle x_object, nb::handle weight_object, float eps,
                   nb::handle out_object) {
  const ArrayView x = view_array(x_object, "x", {Element::f32}, 2);
  const ArrayView weight = view_array(weight_object, "weight", {Element::f32}, 1);
  const ArrayView out = view_array(out_object, "out", {Element::f32}, 2, true);
  check_length(weight, "weight", 0, x.shape[1]);
  check_length(out, "out", 0, x.shape[0]);
  check_length(out, "out", 1, x.shape[1]);
  const nb::gil_scoped_release unlocked;
  rms_norm(pool, floats(x), floats(weight), eps, x.shape[0], x.shape[1], static_cast<float*>(out.data));
}

void make_gate(GateSpec* self, int n_experts, int top_k, bool softmax, int n_groups, int n_groups_used,
               int group_best, bool normalise, float weights_scale) {
  const GateSpec spec{n_experts,     top_k,      softmax,   n_groups,
                      n_groups_used, group_best, normalise, weights_scale};
  check_gate(spec);
  new (self) GateSpec(spec);
}

void call_route_tokens(ThreadPool& pool, const GateSpec& spec, nb::handle logits_object,
                       const std::optional<nb::object>& bias_object, nb::handle ids_object,
                       nb::handle weights_object) {
  const ArrayView logits = view_array(logits_object, "logits", {Element::f32}, 2);
  const ArrayView ids = view_array(ids_object, "ids", {Element::i32}, 2, true);
  const ArrayView weights = view_array(weights_object, "weights", {Element::f32}, 2, true);
  check_length(logits, "logits", 1, spec.n_experts);
  for (const auto& [view, name] : {std::pair{&ids, "ids"}, std::pair{&weights, "weights"}}) {
    check_length(*view, name, 0, logits.shape[0]);
    check_length(*view, name, 1, spec.top_k);
  }
  std::optional<ArrayView> bias;
  if (bias_object) {
    bias = view_array(*bias_object, "bias", {Element::f32}, 1);
    check_length(*bias, "bias", 0, spec.n_experts);
  }
  const nb::gil_scoped_release unlocked;
  route_tokens(pool, spec, floats(logits), bias ? floats(*bias) : nullptr, logits.shape[0],
               static_cast<int32_t*>(ids.data), static_cast<float*>(weights.data));
}

void make_layer_gate(Gate* self, ThreadPool& pool, const GateSpec& spec, nb::handle weight_object,
                     const std::optional<nb::object>& bias_object, const std::string& isa) {
  const ArrayView weight = view_array(weight_object, "weight", {Element::f32}, 2);
  check_length(weight, "weight", 0, spec.n_experts);
  std::vector<float> bias;
  if (bias_object) {
    const ArrayView view = view_array(*bias_object, "bias", {Element::f32}, 1);
    check_length(view, "bias", 0, spec.n_experts);
    bias.assign(floats(view), floats(view) + spec.n_experts);
  }
  const Matrix matrix{GgmlType::F32, static_cast<const uint8_t*>(weight.data),
                      static_cast<size_t>(weight.size()) * sizeof(float), false};
  new (self) Gate(pool, *select_isa(isa).primitives, spec, matrix, weight.shape[1], std::move(bias));
}

void call_gate(Gate& gate, nb::handle x_object, nb::handle ids_object, nb::handle weights_object) {
  const ArrayView x = view_array(x_object, "x", {Element::f32}, 2);
  const ArrayView ids = view_array(ids_object, "ids", {Element::i32}, 2, true);
  const ArrayView weights = view_array(weights_object, "weights", {Element::f32}, 2, true);
  check_length(x, "x", 1, gate.hidden());
  for (const auto& [view, name] : {std::pair{&ids, "ids"}, std::pair{&weights, "weights"}}) {
    check_length(*view, name, 0, x.shape[0]);
    check_length(*view, name, 1, gate.spec().top_k);
  }
  const nb::gil_scoped_release unlocked;
  gate.route(floats(x), x.shape[0], static_cast<int32_t*>(ids.data), static_cast<float*>(weights.data));
}

void bind_cache(nb::module_& m) {
  m.def(
      "latent_entry_bytes",
      [](const std::string& format, int latent, int rope) {
        return entry_shape(format, latent, rope).bytes();
      },
      nb::arg("kind"), nb::arg("latent"), nb::arg("rope"));
  nb::class_<LatentPages>(m, "LatentPages")
      .def("__init__", &make_pages, nb::arg("raw"), nb::arg("kind"), nb::arg("latent"), nb::arg("rope"),
           nb::arg("page_tokens"))
      .def_prop_ro("n_pages", [](const LatentPages& pages) { return pages.layer.n_pages; });
  m.def("store_latents", &store, nb::arg("pool"), nb::arg("pages"), nb::arg("kv"), nb::arg("weight"),
        nb::arg("eps"), nb::arg("cos"), nb::arg("sin"), nb::arg("slots"));
}

void bind_mla(nb::module_& m) {
  nb::class_<LatentMaps>(m, "LatentMaps")
      .def("__init__", &make_maps, nb::arg("k_b"), nb::arg("v_b"), nb::arg("rounded"))
      .def_prop_ro("nbytes", &LatentMaps::bytes);
  nb::class_<Mla>(m, "Mla")
      .def("__init__", &make_mla, nb::arg("pool"), nb::arg("heads"), nb::arg("nope"), nb::arg("rope"),
           nb::arg("latent"), nb::arg("value"), nb::arg("scale"), nb::arg("isa") = "auto",
           nb::keep_alive<1, 2>())
      .def("attend", &attend, nb::arg("maps"), nb::arg("q"), nb::arg("cos"), nb::arg("sin"), nb::arg("pages"),
           nb::arg("segments"), nb::arg("page_table"), nb::arg("out"));
}

void bind_layer(nb::module_& m) {
  nb::class_<AttentionLayer>(m, "AttentionLayer")
      .def("__init__", &make_layer, nb::arg("pool"), nb::arg("mla"), nb::arg("query_down").none(),
           nb::arg("query_norm").none(), nb::arg("query"), nb::arg("kv"), nb::arg("kv_norm"), nb::arg("maps"),
           nb::arg("output"), nb::arg("eps"), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(),
           nb::keep_alive<1, 4>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>(), nb::keep_alive<1, 9>(),
           nb::keep_alive<1, 10>())
      .def("__call__", &call_layer, nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("slots"),
           nb::arg("pages"), nb::arg("segments"), nb::arg("page_table"), nb::arg("out"));
}

void bind_gate(nb::module_& m) {
  nb::class_<GateSpec>(m, "GateRule")
      .def("__init__", &make_gate, nb::kw_only(), nb::arg("n_experts"), nb::arg("top_k"), nb::arg("softmax"),
           nb::arg("n_groups"), nb::arg("n_groups_used"), nb::arg("group_best"), nb::arg("normalise"),
           nb::arg("weights_scale"));
  m.def("route_tokens", &call_route_tokens, nb::arg("pool"), nb::arg("rule"), nb::arg("logits"),
        nb::arg("bias").none(), nb::arg("ids"), nb::arg("weights"));
  nb::class_<Gate>(m, "Gate")
      .def("__init__", &make_layer_gate, nb::arg("pool"), nb::arg("rule"), nb::arg("weight"),
           nb::arg("bias").none(), nb::arg("isa") = "auto", nb::keep_alive<1, 2>(), nb::keep_alive<1, 4>())
      .def("__call__", &call_gate, nb::arg("x"), nb::arg("ids"), nb::arg("weights"));
}

}  // namespace
}  // namespace trimaran::api

void bind_attention(nanobind::module_& m) {
  using namespace trimaran::api;
  bind_cache(m);
  bind_mla(m);
  bind_layer(m);
  bind_gate(m);
  m.def("rms_norm", &call_rms_norm, nb::arg("pool"), nb::arg("x"), nb::arg("weight"), nb::arg("eps"),
        nb::arg("out"));
}
