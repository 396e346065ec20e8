#include "api/arrays.h"

#include <algorithm>
#include <cstring>
#include <optional>

namespace trimaran::api {
namespace {

struct ElementTraits {
  Element element;
  const char* name;
  nb::dlpack::dtype dtypes[2];  // accepted representations
  size_t bytes;
};

constexpr auto code(nb::dlpack::dtype_code value) { return static_cast<uint8_t>(value); }

const ElementTraits kElements[] = {
    {Element::u8, "uint8", {nb::dtype<uint8_t>(), nb::dtype<uint8_t>()}, 1},
    {Element::i32, "int32", {nb::dtype<int32_t>(), nb::dtype<int32_t>()}, 4},
    {Element::i64, "int64", {nb::dtype<int64_t>(), nb::dtype<int64_t>()}, 8},
    {Element::f32, "float32", {nb::dtype<float>(), nb::dtype<float>()}, 4},
    {Element::bf16,
     "bfloat16 (or its bits as uint16)",
     {nb::dtype<uint16_t>(), {code(nb::dlpack::dtype_code::Bfloat), 16, 1}},
     2},
};

const ElementTraits& traits_of(Element element) { return kElements[static_cast<int>(element)]; }

[[noreturn]] void refuse(const char* argument, const std::string& reason) {
  throw KernelError(std::string(argument) + ": " + reason);
}

std::string names_of(std::initializer_list<Element> elements) {
  std::string names;
  for (const Element element : elements)
    names += (names.empty() ? "" : " or ") + std::string(traits_of(element).name);
  return names;
}

const ElementTraits& match_element(const Array& array, const char* argument,
                                   std::initializer_list<Element> elements) {
  for (const Element element : elements) {
    const ElementTraits& traits = traits_of(element);
    if (array.dtype() == traits.dtypes[0] || array.dtype() == traits.dtypes[1]) return traits;
  }
  refuse(argument, "need an array of " + names_of(elements));
}

bool is_contiguous(const Array& array) {
  if (array.size() == 0) return true;
  int64_t expected = 1;
  for (size_t i = array.ndim(); i-- > 0;) {
    if (array.shape(i) > 1 && array.stride(i) != expected) return false;
    expected *= static_cast<int64_t>(array.shape(i));
  }
  return true;
}

// What the elements are called in a buffer's format; nullptr: nothing that NumPy knows.
const char* buffer_format(Element element) {
  switch (element) {
    case Element::u8:
      return "B";
    case Element::i32:
      return "i";
    case Element::i64:
      return "l";
    case Element::f32:
      return "f";
    case Element::bf16:
      return "H";
  }
  return nullptr;
}

// The short way, for NumPy's arrays: a third of what the general one costs, which names every mistake.
// Nothing if the object is not of the kind.
std::optional<ArrayView> view_buffer(nb::handle object, std::initializer_list<Element> elements, int n_dims,
                                     bool writable) {
  if (!PyObject_CheckBuffer(object.ptr())) return std::nullopt;
  Py_buffer buffer;
  const int flags = PyBUF_ND | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);  // without strides: contiguous
  if (PyObject_GetBuffer(object.ptr(), &buffer, flags) != 0) {
    PyErr_Clear();
    return std::nullopt;
  }
  std::optional<ArrayView> view;
  const auto is_format = [&buffer](Element element) {
    return std::strcmp(buffer.format, buffer_format(element)) == 0;
  };
  const auto* element = std::find_if(elements.begin(), elements.end(), is_format);
  if (element != elements.end() && buffer.ndim == n_dims &&
      reinterpret_cast<uintptr_t>(buffer.buf) % traits_of(*element).bytes == 0) {
    view.emplace(ArrayView{nb::borrow(object), buffer.buf, {buffer.shape, buffer.shape + n_dims}, *element});
  }
  PyBuffer_Release(&buffer);
  return view;
}

}  // namespace

int64_t ArrayView::size() const {
  int64_t product = 1;
  for (const int64_t length : shape) product *= length;
  return product;
}

ArrayView view_array(nb::handle object, const char* argument, std::initializer_list<Element> elements,
                     int n_dims, bool writable) {
  if (auto view = view_buffer(object, elements, n_dims, writable)) return *std::move(view);
  Array array;
  if (!nb::try_cast<Array>(object, array, false)) refuse(argument, "need an array of " + names_of(elements));
  nb::ndarray<> mutable_array;
  if (writable && !nb::try_cast<nb::ndarray<>>(object, mutable_array, false))
    refuse(argument, "is read-only");
  if (array.device_type() != nb::device::cpu::value) refuse(argument, "need an array in CPU memory");
  const ElementTraits& traits = match_element(array, argument, elements);
  if (static_cast<int>(array.ndim()) != n_dims) {
    refuse(argument, "need " + std::to_string(n_dims) + " dimensions, have " + std::to_string(array.ndim()));
  }
  if (!is_contiguous(array)) refuse(argument, "need a C-contiguous array");
  void* data = const_cast<void*>(static_cast<const void*>(array.data()));
  if (reinterpret_cast<uintptr_t>(data) % traits.bytes != 0) refuse(argument, "need an aligned array");
  ArrayView view{nb::borrow(object), data, {}, traits.element};
  for (size_t i = 0; i < array.ndim(); ++i) view.shape.push_back(static_cast<int64_t>(array.shape(i)));
  return view;
}

void check_length(const ArrayView& view, const char* argument, int dimension, int64_t expected) {
  const int64_t length = view.shape[static_cast<size_t>(dimension)];
  if (length == expected) return;
  refuse(argument, "need length " + std::to_string(expected) + " in dimension " + std::to_string(dimension) +
                       ", have " + std::to_string(length));
}

Matrix matrix_from(int type, const ArrayView& raw, const char* argument) {
  if (find_type(type) == nullptr) refuse(argument, "GGUF type " + std::to_string(type) + " is not supported");
  return {static_cast<GgmlType>(type), static_cast<const uint8_t*>(raw.data),
          static_cast<size_t>(raw.size())};
}

}  // namespace trimaran::api
