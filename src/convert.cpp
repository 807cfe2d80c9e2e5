// Token ids from whatever a Python caller calls a sequence of integers.
#include "bindings.h"

namespace grebe::bind {
namespace {

[[noreturn]] void refuse(const std::string& where, const std::string& value, int32_t vocab_size) {
  throw InvalidArgument(
      where + " is " + value + "; token ids are integers from 0 to " +
      std::to_string(vocab_size - 1));
}

std::string at(const char* what, Py_ssize_t i) {
  return std::string(what) + "[" + std::to_string(i) + "]";
}

std::string shown(nb::handle object) {
  std::string text = nb::repr(object).c_str();
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text + " (" + nb::str(object.type().attr("__name__")).c_str() + ")";
}

// bool is an int to Python and never a token id to us. NumPy integers come in through __index__.
int32_t checked_token(nb::handle object, int32_t vocab_size, const auto& where) {
  if (PyBool_Check(object.ptr()) || !PyIndex_Check(object.ptr()))
    refuse(where(), shown(object), vocab_size);
  const Py_ssize_t id = PyNumber_AsSsize_t(
      object.ptr(), nullptr);  // clips big integers, which are out of range anyway
  if (id == -1 && PyErr_Occurred()) {
    PyErr_Clear();  // an __index__ that refuses, as numpy.bool_ has
    refuse(where(), shown(object), vocab_size);
  }
  if (id < 0 || id >= vocab_size) refuse(where(), nb::repr(object).c_str(), vocab_size);
  return static_cast<int32_t>(id);
}

template <class T>
void copy_array(
    const nb::ndarray<nb::ro>& array,
    int32_t vocab_size,
    const char* what,
    std::vector<int32_t>& out) {
  const T* data = static_cast<const T*>(array.data());
  const int64_t stride = array.stride(0);
  for (size_t i = 0; i < array.shape(0); i++) {
    const T id = data[static_cast<int64_t>(i) * stride];
    if (id < T{0} || static_cast<uint64_t>(id) >= static_cast<uint64_t>(vocab_size)) {
      refuse(at(what, static_cast<Py_ssize_t>(i)), std::to_string(id), vocab_size);
    }
    out[i] = static_cast<int32_t>(id);
  }
}

std::string device_name(int type) {
  switch (type) {
    case nb::device::cuda::value:
      return "CUDA";
    case nb::device::cuda_host::value:
      return "CUDA host";
    case nb::device::rocm::value:
      return "ROCm";
    case nb::device::metal::value:
      return "Metal";
    default:
      return "DLPack type " + std::to_string(type);
  }
}

std::vector<int32_t> from_array(
    const nb::ndarray<nb::ro>& array, int32_t vocab_size, const char* what) {
  if (array.device_type() != nb::device::cpu::value) {
    throw InvalidArgument(
        std::string(what) + " is an array on " + device_name(array.device_type()) + " device " +
        std::to_string(array.device_id()) + "; copy it to the CPU first");
  }
  if (array.ndim() != 1) {
    throw InvalidArgument(
        std::string(what) + " has " + std::to_string(array.ndim()) +
        " dimensions; one is expected");
  }
  std::vector<int32_t> out(array.shape(0));
  const nb::dlpack::dtype type = array.dtype();
  const bool is_signed = type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Int);
  if (!is_signed && type.code != static_cast<uint8_t>(nb::dlpack::dtype_code::UInt)) {
    throw InvalidArgument(
        std::string(what) + " is an array of floats or bools; integers are expected");
  }
  if (type.lanes != 1) {
    throw InvalidArgument(
        std::string(what) + " is an array of vectors of " + std::to_string(type.lanes) +
        "; plain integers are expected");
  }
  switch (type.bits) {
    case 8:
      is_signed ? copy_array<int8_t>(array, vocab_size, what, out)
                : copy_array<uint8_t>(array, vocab_size, what, out);
      break;
    case 16:
      is_signed ? copy_array<int16_t>(array, vocab_size, what, out)
                : copy_array<uint16_t>(array, vocab_size, what, out);
      break;
    case 32:
      is_signed ? copy_array<int32_t>(array, vocab_size, what, out)
                : copy_array<uint32_t>(array, vocab_size, what, out);
      break;
    case 64:
      is_signed ? copy_array<int64_t>(array, vocab_size, what, out)
                : copy_array<uint64_t>(array, vocab_size, what, out);
      break;
    default:
      throw InvalidArgument(std::string(what) + " has integers of an unknown size");
  }
  return out;
}

}  // namespace

int32_t to_token(nb::handle object, int32_t vocab_size, const char* what) {
  return checked_token(object, vocab_size, [&] { return std::string(what); });
}

std::vector<int32_t> to_tokens(nb::handle object, int32_t vocab_size, const char* what) {
  // Bytes would pass as an array of small integers and a str as a sequence of characters: both mean
  // that someone forgot to encode.
  if (PyUnicode_Check(object.ptr()) || PyBytes_Check(object.ptr()) ||
      PyByteArray_Check(object.ptr())) {
    throw InvalidArgument(
        std::string(what) + " is " + shown(object) +
        "; token ids are expected (encode text with model.tokenizer.encode)");
  }
  // Their order is not what a caller wrote, and a dict's values would be dropped.
  if (PyAnySet_Check(object.ptr()) || PyDict_Check(object.ptr())) {
    throw InvalidArgument(
        std::string(what) + " is " + shown(object) + "; a sequence of token ids is expected");
  }
  const bool is_plain = PyList_Check(object.ptr()) || PyTuple_Check(object.ptr());
  if (!is_plain && nb::ndarray_check(object)) {
    nb::ndarray<nb::ro> array;
    if (nb::try_cast(object, array)) return from_array(array, vocab_size, what);
  }
  nb::object items = nb::steal(PySequence_Fast(object.ptr(), ""));
  if (!items.is_valid()) {
    PyErr_Clear();
    throw InvalidArgument(
        std::string(what) + " is " + shown(object) + "; a sequence of token ids is expected");
  }
  std::vector<int32_t> out(static_cast<size_t>(PySequence_Size(items.ptr())));
  for (size_t i = 0; i < out.size(); i++) {
    const auto index = static_cast<Py_ssize_t>(i);
    nb::object item = nb::steal(PySequence_GetItem(items.ptr(), index));
    if (!item.is_valid()) throw nb::python_error();
    out[i] = checked_token(item, vocab_size, [&] { return at(what, index); });
  }
  return out;
}

}  // namespace grebe::bind
