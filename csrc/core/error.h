// The error tree of the engine. Nothing else crosses the public boundary: a library inside a Python
// process neither exits nor aborts. src/errors.cpp translates these to the classes of grebe.errors.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace grebe {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A caller's value, shape or dtype.
struct InvalidArgument : Error {
  using Error::Error;
};

/// Prompt and budget exceed the session's context.
struct ContextOverflow : Error {
  ContextOverflow(const std::string& message, int64_t n_prompt, int64_t n_ctx)
      : Error(message), n_prompt(n_prompt), n_ctx(n_ctx) {}
  int64_t n_prompt;
  int64_t n_ctx;
};

/// A file lies: a length past the end, a bad magic. `offset` is in bytes from the start of `path`.
struct FormatError : Error {
  FormatError(const std::string& path, uint64_t offset, const std::string& what)
      : Error(path + ": byte " + std::to_string(offset) + ": " + what),
        path(path),
        offset(offset) {}
  std::string path;
  uint64_t offset;
};

/// A sound file of another model or quantization.
struct UnsupportedModel : Error {
  UnsupportedModel(
      const std::string& message, std::string key, std::string found, std::string expected)
      : Error(message),
        key(std::move(key)),
        found(std::move(found)),
        expected(std::move(expected)) {}
  std::string key, found, expected;
};

/// The backend is not in this build, or the machine has no such device.
struct BackendUnavailable : Error {
  BackendUnavailable(const std::string& message, std::string name)
      : Error(message), name(std::move(name)) {}
  std::string name;
};

/// A fault while an operation ran: a device error, or numbers that are not finite.
struct BackendError : Error {
  BackendError(const std::string& message, std::string op) : Error(message), op(std::move(op)) {}
  std::string op;
};

/// An allocation that did not fit; `bytes` is the size that was asked for.
struct OutOfMemory : Error {
  OutOfMemory(const std::string& message, uint64_t bytes) : Error(message), bytes(bytes) {}
  uint64_t bytes;
};

/// A file could not be read or written.
struct IoError : Error {
  IoError(const std::string& message, std::string path, int errno_value)
      : Error(message), path(std::move(path)), errno_value(errno_value) {}
  std::string path;
  int errno_value;
};

/// The caller asked for the work to stop. State is as documented by the call that threw.
struct Cancelled : Error {
  using Error::Error;
};

}  // namespace grebe

// Broken invariants throw (always on, cheap): file and line say where.
#define GREBE_STRINGIZE_(x) #x
#define GREBE_STRINGIZE(x) GREBE_STRINGIZE_(x)
#define GREBE_ASSERT(cond)                                                         \
  do {                                                                             \
    if (!(cond)) [[unlikely]]                                                      \
      throw ::grebe::Error(                                                        \
          "internal error: " #cond " at " __FILE__ ":" GREBE_STRINGIZE(__LINE__)); \
  } while (0)
