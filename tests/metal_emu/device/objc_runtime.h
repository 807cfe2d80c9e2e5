// The part of the Objective-C runtime that device.mm needs on Linux: clang's GNUstep 2.0 ABI with
// ARC. No Objective-C runtime of the system is involved.
//
// Classes are C++ structs derived from Object, described by define_class() and add_method(). A
// method's type encoding is derived from its C++ signature and compared with the encoding that each
// call site carries, so a declaration that is wrong about Metal's interface is reported.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>

namespace fake_metal {

using NSInteger = long;
using NSUInteger = unsigned long;

/// Layout of clang's selector constants.
struct Selector {
  const char* name;
  const char* types;
};
using SEL = const Selector*;
using Imp = void (*)();

struct Method {
  Imp imp;
  std::string types;
};

/// The first word is the class of the class, as for every object; the rest is ours.
struct Class {
  Class* isa;
  const char* name;
  Class* super;
  std::unordered_map<std::string, Method>* methods;
  void (*destroy)(void*);
  size_t n_bytes;
};

struct Object {
  Class* isa = nullptr;
  std::atomic<int> references{1};
};

Class* define_class(const char* name, Class* super);
/// Null when there is none.
Class* find_class(const char* name);
const Method* find_method(const Class* c, const std::string& selector);

/// "class selector types" of every method, one a line.
std::string describe_methods();

void* retain(void* object);
void release(void* object);
void* autorelease(void* object);
void count_new_object();
uint64_t live_objects();

/// Descriptions of C++ types as in @encode. Objects are all '@'.
template <class T>
struct Encoding {
  static constexpr const char* text = "@";
};
#define FAKE_METAL_ENCODING(type, encoding)       \
  template <>                                     \
  struct Encoding<type> {                         \
    static constexpr const char* text = encoding; \
  };
struct Size {
  NSUInteger width, height, depth;
};
FAKE_METAL_ENCODING(void, "v")
FAKE_METAL_ENCODING(bool, "B")
FAKE_METAL_ENCODING(NSInteger, "q")
FAKE_METAL_ENCODING(NSUInteger, "Q")
FAKE_METAL_ENCODING(const char*, "*")
FAKE_METAL_ENCODING(void*, "^v")
FAKE_METAL_ENCODING(const void*, "^v")
FAKE_METAL_ENCODING(SEL, ":")
FAKE_METAL_ENCODING(Size, "{?=QQQ}")
FAKE_METAL_ENCODING(Object**, "^@")
#undef FAKE_METAL_ENCODING

template <class R, class Self, class... Args>
void add_method(Class* c, const char* selector, R (*imp)(Self*, SEL, Args...)) {
  std::string types = std::string(Encoding<R>::text) + "@:";
  ((types += Encoding<Args>::text), ...);
  (*c->methods)[selector] = Method{reinterpret_cast<Imp>(imp), types};
}

/// The class of objects of type T, set by define<T>().
template <class T>
Class*& class_of() {
  static Class* c = nullptr;
  return c;
}

template <class T>
Class* define(const char* name, Class* super) {
  Class* c = define_class(name, super);
  c->destroy = [](void* object) { static_cast<T*>(object)->~T(); };
  c->n_bytes = sizeof(T);
  return class_of<T>() = c;
}

/// A new object with one reference. Its memory is kept for a while after its end, so that a message
/// to a released object is recognised.
template <class T, class... Args>
T* make(Args&&... args) {
  T* object = new (::operator new(sizeof(T))) T(std::forward<Args>(args)...);
  object->isa = class_of<T>();
  count_new_object();
  return object;
}

template <class T>
T* autoreleased(T* object) {
  return static_cast<T*>(autorelease(object));
}

/// +[T alloc], for classes that callers may create.
template <class T>
void allow_alloc() {
  add_method(class_of<T>()->isa, "alloc", +[](Class*, SEL) -> Object* { return make<T>(); });
}

// ---- Foundation

/// Text of any string object: ours, constant, or packed into the pointer.
std::string string_of(const void* string);
Object* new_string(std::string text);

struct Error final : Object {
  Error(NSInteger code, std::string text) : code(code), text(std::move(text)) {}
  NSInteger code;
  std::string text;
};
/// For `error:` parameters, which may be null.
void set_error(Object** out, NSInteger code, const std::string& text);

Class* root_class();
/// The classes of Metal, in metal_device.cpp and metal_commands.cpp.
void define_device_classes();
void define_command_classes();

}  // namespace fake_metal
