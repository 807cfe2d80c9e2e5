// The only translator from the engine's error tree to the Python classes of grebe.errors.
//
// The classes are written in Python, so that each can also be a ValueError, RuntimeError,
// MemoryError or OSError and carry attributes. They are looked up when an error happens:
// grebe.errors imports nothing, so it is always importable.
#include <new>

#include "bindings.h"

namespace grebe::bind {
namespace {

// Messages quote names out of hostile files: bytes that are no UTF-8 are replaced, they must not
// turn into a UnicodeDecodeError.
nb::object text(const std::string& s) {
  return nb::steal(PyUnicode_DecodeUTF8(s.data(), static_cast<Py_ssize_t>(s.size()), "replace"));
}
nb::object file_name(const std::string& s) {
  return nb::steal(PyUnicode_DecodeFSDefaultAndSize(s.data(), static_cast<Py_ssize_t>(s.size())));
}

template <class... Args>
void raise(const char* name, const char* message, Args... attributes) {
  try {
    nb::object type = nb::module_::import_("grebe.errors").attr(name);
    nb::object error = type(text(message), attributes...);
    PyErr_SetObject(type.ptr(), error.ptr());
  } catch (nb::python_error& broken) {
    broken.restore();
  }
}

// Most derived first: a handler of a base would take the others. Anything that is not ours goes on
// to nanobind's own translators by leaving this function.
void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const InvalidArgument& e) {
    raise("InvalidArgumentError", e.what());
  } catch (const ContextOverflow& e) {
    raise("ContextOverflowError", e.what(), e.n_prompt, e.n_ctx);
  } catch (const FormatError& e) {
    raise("FormatError", e.what(), file_name(e.path), e.offset);
  } catch (const UnsupportedModel& e) {
    raise("UnsupportedModelError", e.what(), text(e.key), text(e.found), text(e.expected));
  } catch (const BackendUnavailable& e) {
    raise("BackendUnavailableError", e.what(), text(e.name));
  } catch (const BackendError& e) {
    raise("BackendError", e.what(), text(e.op));
  } catch (const OutOfMemory& e) {
    raise("OutOfMemoryError", e.what(), e.bytes);
  } catch (const IoError& e) {
    raise("StorageError", e.what(), file_name(e.path), e.errno_value);
  } catch (const Cancelled& e) {
    raise("CancelledError", e.what());
  } catch (const Error& e) {
    raise("GrebeError", e.what());
  } catch (const std::bad_alloc&) {
    raise("OutOfMemoryError", "the system has no memory left for this call", uint64_t{0});
  }
}

}  // namespace

void bind_errors(nb::module_&) { nb::register_exception_translator(translate); }

}  // namespace grebe::bind
