// Python binding of instruction-set selection, thread pool, decoding, linear layers and the expert engine.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "api/arrays.h"
#include "api/module.h"
#include "isa/isa.h"
#include "packed/pack.h"
#include "quant/types.h"
#include "runtime/engine.h"
#include "runtime/linear.h"
#include "runtime/read_memory.h"
#include "runtime/row_tile.h"
#include "runtime/thread_pool.h"

namespace trimaran::api {
namespace {

void bind_errors() {
  // KernelError becomes trimaran.errors.KernelError, so that callers catch one exception tree. The class
  // lives as long as its module, which is never unloaded.
  nb::object error = nb::module_::import_("trimaran.errors").attr("KernelError");
  nb::register_exception_translator(
      [](const std::exception_ptr& pointer, void* type) {
        try {
          std::rethrow_exception(pointer);
        } catch (const KernelError& e) {
          PyErr_SetString(static_cast<PyObject*>(type), e.what());
        }
      },
      error.release().ptr());
}

nb::list list_types() {
  size_t count = 0;
  const TypeTraits* types = all_types(&count);
  nb::list result;
  for (size_t i = 0; i < count; ++i) {
    result.append(nb::make_tuple(static_cast<int>(types[i].type), types[i].name, types[i].block_size,
                                 types[i].type_size));
  }
  return result;
}

nb::object dequantize(int type, nb::handle raw_object, int64_t n, const std::string& isa) {
  const ArrayView raw = view_array(raw_object, "raw", {Element::u8}, 1);
  if (n < 0) throw KernelError("n: must not be negative, is " + std::to_string(n));
  const Matrix matrix = matrix_from(type, raw, "ggml_type");
  const int64_t columns = n == 0 ? find_type(type)->block_size : n;
  view_rows(matrix, n == 0 ? 0 : 1, columns, "raw");
  auto values = std::make_unique<float[]>(static_cast<size_t>(n));
  const Selection selection = select_isa(isa);
  {
    const nb::gil_scoped_release unlocked;
    selection.primitives->decoder(matrix.type)(matrix.data, n, values.get());
  }
  nb::capsule owner(values.get(), [](void* p) noexcept { delete[] static_cast<float*>(p); });
  const size_t shape[1] = {static_cast<size_t>(n)};
  return nb::cast(nb::ndarray<nb::numpy, float>(values.release(), 1, shape, owner));
}

// Bytes of the packed layout, or None.
nb::object count_packed_bytes(int type, int64_t rows, int64_t columns) {
  if (rows < 0 || columns < 1) throw KernelError("rows, columns: need rows >= 0 and columns >= 1");
  const Format* format = find_format(static_cast<GgmlType>(type));
  if (format == nullptr || columns % find_type(type)->block_size != 0) return nb::none();
  return nb::cast(packed_bytes(*format, rows, columns));
}

void call_pack(ThreadPool& pool, int type, nb::handle raw_object, int64_t rows, int64_t columns,
               nb::handle out_object) {
  const ArrayView raw = view_array(raw_object, "raw", {Element::u8}, 1);
  const ArrayView out = view_array(out_object, "out", {Element::u8}, 1, true);
  const RowMatrix source = view_rows(matrix_from(type, raw, "ggml_type"), rows, columns, "raw");
  const Format* format = find_format(source.traits->type);
  if (format == nullptr)
    throw KernelError("ggml_type: " + std::string(source.traits->name) + " has no packed layout");
  const size_t need = packed_bytes(*format, rows, columns);
  check_length(out, "out", 0, static_cast<int64_t>(need));
  const nb::gil_scoped_release unlocked;
  pack(pool, *format, source, static_cast<uint8_t*>(out.data));
}

void call_linear(ThreadPool& pool, int type, nb::handle raw_object, nb::handle x_object,
                 nb::handle out_object, const std::string& isa, bool packed) {
  const ArrayView raw = view_array(raw_object, "raw", {Element::u8}, 1);
  const ArrayView x = view_array(x_object, "x", {Element::f32}, 2);
  const ArrayView out = view_array(out_object, "out", {Element::f32}, 2, true);
  check_length(out, "out", 0, x.shape[0]);
  if (x.shape[0] > INT32_MAX) throw KernelError("x: too many rows");
  Matrix matrix = matrix_from(type, raw, "ggml_type");
  matrix.packed = packed;
  const Selection selection = select_isa(isa);
  const nb::gil_scoped_release unlocked;
  Linear(pool, *selection.primitives, matrix, out.shape[1], x.shape[1])
      .multiply(static_cast<const float*>(x.data), x.shape[0], static_cast<float*>(out.data));
}

void make_linear(Linear* self, ThreadPool& pool, int type, nb::handle raw_object, int64_t rows,
                 int64_t columns, const std::string& isa, bool packed) {
  Matrix matrix = matrix_from(type, view_array(raw_object, "raw", {Element::u8}, 1), "ggml_type");
  matrix.packed = packed;
  new (self) Linear(pool, *select_isa(isa).primitives, matrix, rows, columns);
}

void multiply(Linear& self, nb::handle x_object, nb::handle out_object) {
  const ArrayView x = view_array(x_object, "x", {Element::f32}, 2);
  const ArrayView out = view_array(out_object, "out", {Element::f32}, 2, true);
  check_length(x, "x", 1, self.columns());
  check_length(out, "out", 0, x.shape[0]);
  check_length(out, "out", 1, self.rows());
  if (x.shape[0] > INT32_MAX) throw KernelError("x: too many rows");
  const nb::gil_scoped_release unlocked;
  self.multiply(static_cast<const float*>(x.data), x.shape[0], static_cast<float*>(out.data));
}

uint64_t call_read_memory(ThreadPool& pool, nb::handle raw_object) {
  const ArrayView raw = view_array(raw_object, "raw", {Element::u8}, 1);
  if (reinterpret_cast<uintptr_t>(raw.data) % sizeof(uint64_t) != 0) {
    throw KernelError("raw: need an address that 8 divides");
  }
  const nb::gil_scoped_release unlocked;
  return read_memory(pool, static_cast<const uint8_t*>(raw.data), static_cast<size_t>(raw.size()));
}

void make_engine(ExpertEngine* self, ThreadPool& pool, int hidden, int intermediate, int n_experts, int top_k,
                 int max_tokens, const std::string& isa, bool exact) {
  const EngineDims dims{hidden, intermediate, n_experts, top_k, max_tokens};
  new (self) ExpertEngine(pool, *select_isa(isa).primitives, dims, exact);
}

// From (GGUF type id, uint8 array) or (GGUF type id, uint8 array, packed).
Matrix typed_matrix(const nb::tuple& typed, const char* argument) {
  int type = -1;
  bool packed = false;
  if (typed.size() < 2 || typed.size() > 3 || !nb::try_cast<int>(typed[0], type) ||
      (typed.size() == 3 && !nb::try_cast<bool>(typed[2], packed))) {
    throw KernelError(std::string(argument) + ": need a tuple (GGUF type, uint8 array[, packed])");
  }
  Matrix matrix = matrix_from(type, view_array(typed[1], argument, {Element::u8}, 1), argument);
  matrix.packed = packed;
  return matrix;
}

void add_layer(ExpertEngine& engine, int layer, const nb::tuple& gate, const nb::tuple& up,
               const nb::tuple& down, int first_expert, int n_experts) {
  engine.add_layer(layer, {typed_matrix(gate, "gate"), typed_matrix(up, "up"), typed_matrix(down, "down"),
                           first_expert, n_experts});
}

int forward(ExpertEngine& engine, int layer, nb::handle x_object, nb::handle ids_object,
            nb::handle weights_object, nb::handle y_object) {
  const EngineDims& dims = engine.dims();
  const ArrayView x = view_array(x_object, "x", {Element::f32, Element::bf16}, 2);
  const ArrayView ids = view_array(ids_object, "ids", {Element::i32}, 2);
  const ArrayView weights = view_array(weights_object, "weights", {Element::f32}, 2);
  const ArrayView y = view_array(y_object, "y", {x.element}, 2, true);
  const int64_t n = x.shape[0];
  check_length(x, "x", 1, dims.hidden);
  check_length(ids, "ids", 0, n);
  check_length(ids, "ids", 1, dims.top_k);
  check_length(weights, "weights", 0, n);
  check_length(weights, "weights", 1, dims.top_k);
  check_length(y, "y", 0, n);
  check_length(y, "y", 1, dims.hidden);
  if (n > dims.max_tokens) return static_cast<int>(Status::bad_token_count);
  const DType dtype = x.element == Element::f32 ? DType::f32 : DType::bf16;
  const nb::gil_scoped_release unlocked;
  return static_cast<int>(engine.forward(layer, static_cast<int>(n), x.data,
                                         static_cast<const int32_t*>(ids.data),
                                         static_cast<const float*>(weights.data), y.data, dtype));
}

void bind_isa(nb::module_& m) {
  m.def(
      "detect_isa", [](const std::string& cap) { return std::string(select_isa(cap).primitives->name); },
      nb::arg("cap") = "auto");
  m.def(
      "explain_isa", [](const std::string& cap) { return select_isa(cap).explanation; },
      nb::arg("cap") = "auto");
  m.def("built_isas", &built_isas);
  m.def("cpu_features", [] { return feature_names(detect_cpu()); });
  m.def("supported_types", &list_types);
}

void bind_pool(nb::module_& m) {
  nb::class_<ThreadPool>(m, "ThreadPool")
      .def(nb::init<const std::vector<int>&>(), nb::arg("cpus"))
      .def("rest", &ThreadPool::rest)
      .def_prop_ro("size", &ThreadPool::size)
      .def_prop_ro("cpus", &ThreadPool::cpus);
}

void bind_linear(nb::module_& m) {
  m.def("linear", &call_linear, nb::arg("pool"), nb::arg("ggml_type"), nb::arg("raw"), nb::arg("x"),
        nb::arg("out"), nb::arg("isa") = "auto", nb::arg("packed") = false);
  nb::class_<Linear>(m, "Linear")
      .def("__init__", &make_linear, nb::arg("pool"), nb::arg("ggml_type"), nb::arg("raw"), nb::arg("rows"),
           nb::arg("columns"), nb::arg("isa") = "auto", nb::arg("packed") = false, nb::keep_alive<1, 2>(),
           nb::keep_alive<1, 4>())
      .def("__call__", &multiply, nb::arg("x"), nb::arg("out"))
      .def_prop_ro("rows", &Linear::rows)
      .def_prop_ro("columns", &Linear::columns);
}

void bind_engine(nb::module_& m) {
  nb::class_<ExpertEngine>(m, "ExpertEngine")
      .def("__init__", &make_engine, nb::arg("pool"), nb::arg("hidden"), nb::arg("intermediate"),
           nb::arg("n_experts"), nb::arg("top_k"), nb::arg("max_tokens") = 4096, nb::arg("isa") = "auto",
           nb::arg("exact") = false, nb::keep_alive<1, 2>())
      .def("add_layer", &add_layer, nb::arg("layer"), nb::arg("gate"), nb::arg("up"), nb::arg("down"),
           nb::arg("first_expert"), nb::arg("n_experts"), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(),
           nb::keep_alive<1, 5>())
      .def("forward", &forward, nb::arg("layer"), nb::arg("x"), nb::arg("ids"), nb::arg("weights"),
           nb::arg("y"))
      .def("has_layer", &ExpertEngine::has_layer, nb::arg("layer"))
      .def_prop_ro("hidden", [](const ExpertEngine& e) { return e.dims().hidden; })
      .def_prop_ro("intermediate", [](const ExpertEngine& e) { return e.dims().intermediate; })
      .def_prop_ro("n_experts", [](const ExpertEngine& e) { return e.dims().n_experts; })
      .def_prop_ro("top_k", [](const ExpertEngine& e) { return e.dims().top_k; })
      .def_prop_ro("max_tokens", [](const ExpertEngine& e) { return e.dims().max_tokens; })
      .def_prop_ro("isa", [](const ExpertEngine& e) { return e.isa(); })
      .def_prop_ro("bytes_read", &ExpertEngine::bytes_read);
}

}  // namespace
}  // namespace trimaran::api

void bind_core(nanobind::module_& m) {
  using namespace trimaran::api;
  bind_errors();
  bind_isa(m);
  bind_pool(m);
  m.def("dequantize", &dequantize, nb::arg("ggml_type"), nb::arg("raw"), nb::arg("n"),
        nb::arg("isa") = "auto");
  bind_linear(m);
  m.def("packed_bytes", &count_packed_bytes, nb::arg("ggml_type"), nb::arg("rows"), nb::arg("columns"));
  m.def("pack", &call_pack, nb::arg("pool"), nb::arg("ggml_type"), nb::arg("raw"), nb::arg("rows"),
        nb::arg("columns"), nb::arg("out"));
  m.def("read_memory", &call_read_memory, nb::arg("pool"), nb::arg("raw"));
  bind_engine(m);
}
