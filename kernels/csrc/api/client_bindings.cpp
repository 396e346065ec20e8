// Python binding of the client's end of the hop.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "api/hop_arrays.h"
#include "api/module.h"
#include "hop/client_call.h"

namespace trimaran::api {
namespace {

using hop::Arena;
using hop::ClientCall;
using hop::ClientLine;
using hop::ClientLines;

std::unique_ptr<ClientCall> start(const ClientLines& lines, int32_t layer, nb::handle x, nb::handle ids,
                                  nb::handle weights) {
  hop::check_lines(lines);
  const TokenViews views = view_tokens(lines.front()->arena().dims(), x, ids, weights);
  const nb::gil_scoped_release unlocked;
  return ClientCall::start(lines, views.batch(layer));
}

std::optional<int32_t> collect(ClientCall& call, double timeout_s, nb::handle y_object) {
  const ArrayView y = view_answer(call.dims(), y_object);
  check_length(y, "y", 0, call.n_tokens());
  const auto deadline = deadline_after(timeout_s);
  const nb::gil_scoped_release unlocked;
  return call.collect(deadline, static_cast<float*>(y.data));
}

}  // namespace
}  // namespace trimaran::api

void bind_client(nanobind::module_& m) {
  using namespace trimaran::api;
  nb::class_<ClientLine>(m, "HopLine")
      .def(nb::init<std::shared_ptr<const Arena>, uint32_t>(), nb::arg("arena"), nb::arg("first_slot") = 0)
      .def_prop_ro("n_free", &ClientLine::n_free);
  nb::class_<ClientCall>(m, "HopCall")
      .def_static("start", &start, nb::arg("lines"), nb::arg("layer"), nb::arg("x"), nb::arg("ids"),
                  nb::arg("weights"))
      .def("collect", &collect, nb::arg("timeout_s"), nb::arg("y"))
      .def_prop_ro("shard", &ClientCall::shard)
      .def("abandon", &ClientCall::abandon);
}
