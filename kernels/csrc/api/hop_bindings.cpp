// Python binding of the hop: arena, doorbell, call gate and worker loop.
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "api/hop_arrays.h"
#include "api/module.h"
#include "hop/arena.h"
#include "hop/call_gate.h"
#include "hop/doorbell.h"
#include "hop/recorder.h"
#include "hop/slot_io.h"
#include "hop/worker.h"

namespace trimaran::api {
namespace {

using hop::Arena;
using hop::ArenaDims;
using hop::ArenaWorker;
using hop::CallGate;
using hop::Recorder;

const char* dtype_name(DType dtype) { return dtype == DType::f32 ? "f32" : "bf16"; }

DType dtype_from(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "bf16") return DType::bf16;
  throw KernelError("dtype: need f32 or bf16, have " + name);
}

nb::tuple layout_of(uint32_t hidden, uint32_t top_k, uint32_t max_tokens, uint32_t n_slots,
                    const std::string& dtype) {
  const auto layout = hop::arena_layout({hidden, top_k, max_tokens, n_slots, dtype_from(dtype)});
  return nb::make_tuple(layout.x, layout.ids, layout.weights, layout.y, layout.slot_stride,
                        layout.file_bytes);
}

nb::tuple dims_of(const Arena& arena) {
  const ArenaDims& dims = arena.dims();
  return nb::make_tuple(dims.hidden, dims.top_k, dims.max_tokens, dims.n_slots, dtype_name(dims.dtype));
}

void check_slot(const Arena& arena, uint32_t slot) {
  if (slot < arena.dims().n_slots) return;
  throw KernelError("slot: there are " + std::to_string(arena.dims().n_slots) + ", have no " +
                    std::to_string(slot));
}

void ring(const Arena& arena, uint32_t slot, uint32_t sequence, int32_t layer, uint32_t n_tokens) {
  check_slot(arena, slot);
  hop::ring(arena, slot, sequence, layer, n_tokens);
}

std::optional<int32_t> wait_done(const Arena& arena, uint32_t slot, uint32_t sequence, double timeout_s) {
  check_slot(arena, slot);
  const auto deadline = deadline_after(timeout_s);
  const nb::gil_scoped_release unlocked;
  return hop::wait_done(arena, slot, sequence, deadline, hop::default_spin());
}

// Returns the number of tokens.
uint32_t put(const Arena& arena, uint32_t slot, nb::handle x, nb::handle ids, nb::handle weights) {
  check_slot(arena, slot);
  const TokenViews views = view_tokens(arena.dims(), x, ids, weights);
  const hop::ClientBatch batch = views.batch(0);
  const nb::gil_scoped_release unlocked;
  hop::put_tokens(arena, slot, batch.n_tokens, batch.x, batch.dtype, batch.ids, batch.weights);
  return batch.n_tokens;
}

void add(const Arena& arena, uint32_t slot, nb::handle y_object) {
  check_slot(arena, slot);
  const ArrayView y = view_answer(arena.dims(), y_object);
  const nb::gil_scoped_release unlocked;
  hop::add_answer(arena, slot, static_cast<uint32_t>(y.shape[0]), static_cast<float*>(y.data));
}

int32_t run_slot(CallGate& gate, const Arena& arena, uint32_t slot, int32_t layer, uint32_t n_tokens) {
  const nb::gil_scoped_release unlocked;
  return gate.run_slot(arena, slot, layer, n_tokens);
}

int32_t run_arrays(CallGate& gate, int32_t layer, nb::handle x_object, nb::handle ids_object,
                   nb::handle weights_object, nb::handle y_object) {
  const ArrayView x = view_array(x_object, "x", {Element::f32, Element::bf16}, 2);
  const ArrayView ids = view_array(ids_object, "ids", {Element::i32}, 2);
  const ArrayView weights = view_array(weights_object, "weights", {Element::f32}, 2);
  const ArrayView y = view_array(y_object, "y", {x.element}, 2, true);
  const int64_t n = x.shape[0];
  for (const ArrayView* view : {&x, &y}) check_length(*view, "x and y", 1, gate.dims().hidden);
  for (const ArrayView* view : {&ids, &weights}) {
    check_length(*view, "ids and weights", 0, n);
    check_length(*view, "ids and weights", 1, gate.dims().top_k);
  }
  check_length(y, "y", 0, n);
  if (n > INT32_MAX) throw KernelError("x: too many rows");
  const DType dtype = x.element == Element::f32 ? DType::f32 : DType::bf16;
  const hop::Call call{layer,
                       static_cast<uint32_t>(n),
                       x.data,
                       static_cast<const int32_t*>(ids.data),
                       static_cast<const float*>(weights.data),
                       y.data,
                       dtype};
  const nb::gil_scoped_release unlocked;
  return gate.run(call, call.n_tokens);
}

nb::dict counters_of(const CallGate& gate) {
  const hop::GateCounters counters = gate.counters();
  nb::dict result;
  result["calls"] = counters.calls;
  result["failures"] = counters.failures;
  result["tokens"] = counters.tokens;
  result["engine_calls"] = counters.engine_calls;
  result["merged_calls"] = counters.merged_calls;
  result["gather_waits"] = counters.gather_waits;
  result["gather_ns"] = counters.gather_ns;
  result["busy_ns"] = counters.busy_ns;
  for (size_t i = 0; i < hop::kBusyBounds.size(); ++i) {
    result[("busy_le_" + std::to_string(hop::kBusyBounds[i])).c_str()] = counters.busy_counts[i];
  }
  result["busy_le_inf"] = counters.busy_counts.back();
  result["bytes_read"] = counters.bytes_read;
  result["waiting"] = counters.waiting;
  return result;
}

std::map<int32_t, std::vector<uint64_t>> latencies_of(const CallGate& gate) {
  std::map<int32_t, std::vector<uint64_t>> result;
  for (const auto& [layer, buckets] : gate.latencies()) result[layer].assign(buckets.begin(), buckets.end());
  return result;
}

std::shared_ptr<Recorder> record(CallGate& gate, const std::string& path, uint64_t max_bytes,
                                 const std::string& fingerprint) {
  auto recorder = std::make_shared<Recorder>(path, max_bytes, gate.dims(), fingerprint);
  gate.record(recorder);
  return recorder;
}

nb::list calls_since(const CallGate& gate, int64_t start_ns) {
  nb::list calls;
  for (const hop::CallSpan& span : gate.log().since(start_ns)) {
    calls.append(nb::make_tuple(span.layer, span.n_tokens, span.start_ns, span.end_ns));
  }
  return calls;
}

void stop_worker(ArenaWorker& worker) {
  const nb::gil_scoped_release unlocked;
  worker.stop();
}

}  // namespace
}  // namespace trimaran::api

void bind_hop(nanobind::module_& m) {
  using namespace trimaran::api;
  m.def("arena_layout", &layout_of, nb::arg("hidden"), nb::arg("top_k"), nb::arg("max_tokens"),
        nb::arg("n_slots"), nb::arg("dtype"));
  nb::class_<Arena>(m, "HopArena")
      .def(nb::init<const std::string&>(), nb::arg("path"))
      .def_prop_ro("dims", &dims_of)
      .def_prop_ro("lost", &Arena::lost)
      .def("ring", &ring, nb::arg("slot"), nb::arg("sequence"), nb::arg("layer"), nb::arg("n_tokens"))
      .def("wait_done", &wait_done, nb::arg("slot"), nb::arg("sequence"), nb::arg("timeout_s"))
      .def("begin_step", &trimaran::hop::begin_step)
      .def("end_step", &trimaran::hop::end_step)
      .def("abandon", &trimaran::hop::abandon)
      .def("put", &put, nb::arg("slot"), nb::arg("x"), nb::arg("ids"), nb::arg("weights"))
      .def("add", &add, nb::arg("slot"), nb::arg("y"));
  nb::class_<Recorder>(m, "Recorder")
      .def_prop_ro("calls", &Recorder::calls)
      .def_prop_ro("bytes", &Recorder::bytes)
      .def_prop_ro("full", &Recorder::full);
  nb::class_<CallGate>(m, "CallGate")
      .def(nb::init<trimaran::ExpertEngine&, bool, bool>(), nb::arg("engine"), nb::arg("gathers") = true,
           nb::arg("rests") = true, nb::keep_alive<1, 2>())
      .def("run_slot", &run_slot, nb::arg("arena"), nb::arg("slot"), nb::arg("layer"), nb::arg("n_tokens"))
      .def("run", &run_arrays, nb::arg("layer"), nb::arg("x"), nb::arg("ids"), nb::arg("weights"),
           nb::arg("y"))
      .def("counters", &counters_of)
      .def("latencies", &latencies_of)
      .def("record", &record, nb::arg("path"), nb::arg("max_bytes"), nb::arg("fingerprint"))
      .def("stop_recording", [](CallGate& gate) { gate.record(nullptr); })
      .def("calls_since", &calls_since, nb::arg("start_ns"))
      .def("expert_tokens", &CallGate::expert_tokens);
  nb::class_<ArenaWorker>(m, "ArenaWorker")
      .def(nb::init<const Arena&, CallGate&, int>(), nb::arg("arena"), nb::arg("gate"), nb::arg("cpu"),
           nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>())
      .def("request_stop", &ArenaWorker::request_stop)
      .def_prop_ro("finished", &ArenaWorker::finished)
      .def("stop", &stop_worker);
}
