#include "objc_runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "control.h"

namespace fake_metal {
namespace {

// ---- classes

std::unordered_map<std::string, Class*>& classes() {
  static std::unordered_map<std::string, Class*> all;
  return all;
}

Class* g_root;
Class* g_constant_string;
Class* g_tiny_string;

// Short constant strings are packed into the pointer: tag 4, a length, seven bits a character.
bool is_tiny(const void* object) { return (reinterpret_cast<uintptr_t>(object) & 7) == 4; }

Class* isa(const void* object) {
  if (is_tiny(object)) return g_tiny_string;
  return *static_cast<Class* const*>(object);
}

bool is_class(const void* object) {
  const Class* c = isa(object);
  return c && c->isa == nullptr;  // the class of a class is a metaclass, which has none
}

// Constants and classes are not counted.
bool is_counted(const void* object) {
  return object && !is_tiny(object) && isa(object) != g_constant_string && !is_class(object);
}

// Offsets, qualifiers and names go; objects, classes and blocks are all '@'.
std::string normal_encoding(const char* types) {
  std::string out;
  for (const char* p = types; *p; ++p) {
    if ((*p >= '0' && *p <= '9') || std::strchr("rnNoORV", *p)) continue;
    if (*p == '"') {
      p = std::strchr(p + 1, '"');
    } else if (*p == '#') {
      out += '@';
    } else if (*p == '@' && p[1] == '?') {
      out += '@';
      ++p;
    } else if (*p == '{') {
      out += "{?=";
      p = std::strchr(p, '=');
    } else {
      out += *p;
    }
  }
  return out;
}

// Destroyed objects whose memory is not yet given back.
class Graveyard {
 public:
  void bury(void* object) {
    const std::lock_guard lock(mutex_);
    if (dead_.size() < kSize) {
      dead_.push_back(object);
    } else {
      ::operator delete(std::exchange(dead_[next_++ % kSize], object));
    }
  }

 private:
  static constexpr size_t kSize = 8192;
  std::mutex mutex_;
  std::vector<void*> dead_;
  size_t next_ = 0;
};

Graveyard& graveyard() {
  static Graveyard* g = new Graveyard;  // outlives the threads
  return *g;
}

std::atomic<int64_t> g_live{0};

thread_local std::vector<std::vector<void*>> t_pools;

// ---- Foundation

struct String final : Object {
  explicit String(std::string text) : text(std::move(text)) {}
  std::string text;
};

/// Layout of clang's @"..." constants.
struct ConstantString {
  Class* isa;
  uint32_t flags, length, size, hash;
  const char* data;
};

void define_foundation() {
  Class* object = g_root = define<Object>("NSObject", nullptr);
  add_method(object, "init", +[](Object* self, SEL) -> Object* { return self; });
  add_method(
      object, "retain", +[](Object* self, SEL) { return static_cast<Object*>(retain(self)); });
  add_method(object, "release", +[](Object* self, SEL) { release(self); });
  add_method(
      object, "autorelease", +[](Object* self, SEL) {
        return static_cast<Object*>(autorelease(self));
      });
  add_method(
      object, "respondsToSelector:", +[](Object* self, SEL, SEL selector) {
        return find_method(isa(self), selector->name) != nullptr;
      });
  add_method(
      object->isa, "new", +[](Class* self, SEL) -> Object* {
        const Method* alloc = find_method(self->isa, "alloc");
        if (!alloc) return nullptr;
        return reinterpret_cast<Object* (*)(Class*, SEL)>(alloc->imp)(self, nullptr);
      });

  Class* string = define<String>("NSString", object);
  g_tiny_string = define_class("NSTinyString", string);
  add_method(
      string->isa, "stringWithUTF8String:", +[](Class*, SEL, const char* text) -> Object* {
        return autoreleased(new_string(text));
      });
  // The text lives as long as the autorelease pool, as documented.
  add_method(
      string, "UTF8String", +[](Object* self, SEL) -> const char* {
        return autoreleased(static_cast<String*>(new_string(string_of(self))))->text.c_str();
      });

  Class* error = define<Error>("NSError", object);
  add_method(error, "code", +[](Error* self, SEL) -> NSInteger { return self->code; });
  add_method(
      error, "localizedDescription", +[](Error* self, SEL) -> Object* {
        return autoreleased(new_string(self->text));
      });
}

void nothing() {}

}  // namespace

Class* define_class(const char* name, Class* super) {
  auto* metaclass = new Class{
      nullptr,
      name,
      super ? super->isa : nullptr,
      new std::unordered_map<std::string, Method>,
      nullptr,
      0};
  auto* c = new Class{
      metaclass,
      name,
      super,
      new std::unordered_map<std::string, Method>,
      super ? super->destroy : nullptr,
      super ? super->n_bytes : 0};
  return classes()[name] = c;
}

Class* find_class(const char* name) {
  const auto at = classes().find(name);
  return at == classes().end() ? nullptr : at->second;
}

const Method* find_method(const Class* c, const std::string& selector) {
  for (; c; c = c->super) {
    const auto at = c->methods->find(selector);
    if (at != c->methods->end()) return &at->second;
  }
  return nullptr;
}

std::string describe_methods() {
  std::string out;
  for (const auto& [name, c] : classes()) {
    for (const Class* kind : {static_cast<const Class*>(c), static_cast<const Class*>(c->isa)}) {
      for (const Class* from = kind; from; from = from->super) {
        for (const auto& [selector, method] : *from->methods) {
          out += name + " " + selector + " " + method.types + "\n";
        }
      }
    }
  }
  return out;
}

Class* root_class() { return g_root; }

void count_new_object() { g_live++; }
uint64_t live_objects() { return static_cast<uint64_t>(g_live.load()); }

void* retain(void* object) {
  if (is_counted(object)) static_cast<Object*>(object)->references++;
  return object;
}

void release(void* pointer) {
  if (!is_counted(pointer)) return;
  auto* object = static_cast<Object*>(pointer);
  const int left = --object->references;
  if (left > 0) return;
  Class* c = object->isa;
  if (left < 0) {
    report("over-released %s", c->name);
    return;
  }
  g_live--;
  c->destroy(object);
  // The destructor ended the object's life; what remains is a gravestone.
  auto* stone = new (pointer) Object;
  stone->isa = c;
  stone->references = 0;
  graveyard().bury(pointer);
}

void* autorelease(void* object) {
  if (!is_counted(object)) return object;
  if (t_pools.empty()) {
    report("%s autoreleased with no pool in place", isa(object)->name);
  } else {
    t_pools.back().push_back(object);
  }
  return object;
}

std::string string_of(const void* string) {
  if (!string) return "";
  if (is_tiny(string)) {
    const auto bits = reinterpret_cast<uintptr_t>(string);
    std::string out;
    for (unsigned i = 0; i < (bits >> 3 & 31); i++)
      out += static_cast<char>(bits >> (57 - 7 * i) & 127);
    return out;
  }
  if (isa(string) == g_constant_string) {
    const auto* constant = static_cast<const ConstantString*>(string);
    return {constant->data, constant->length};
  }
  return static_cast<const String*>(string)->text;
}

Object* new_string(std::string text) { return make<String>(std::move(text)); }

void set_error(Object** out, NSInteger code, const std::string& text) {
  if (out) *out = autoreleased(static_cast<Object*>(make<Error>(code, text)));
}

}  // namespace fake_metal

using namespace fake_metal;

// ---- what compiled Objective-C calls

/// The implementation of a message. Called by objc_msgSend with the caller's registers saved.
extern "C" Imp fake_objc_lookup(void* self, SEL selector) {
  if (!self) return nothing;  // returns what is in the registers; clang checks for nil itself
  Class* c = isa(self);
  if (is_counted(self) && static_cast<Object*>(self)->references <= 0) {
    report("message %s sent to a released %s", selector->name, c->name);
    return reinterpret_cast<Imp>(+[]() -> void* { return nullptr; });
  }
  // A call site's selector is a constant of its own, so a hit has passed the checks below.
  struct Entry {
    Class* c;
    SEL selector;
    Imp imp;
  };
  static thread_local Entry cache[256];
  Entry& entry = cache
      [(reinterpret_cast<uintptr_t>(c) >> 4 ^ reinterpret_cast<uintptr_t>(selector) >> 4) & 255];
  if (entry.c == c && entry.selector == selector) return entry.imp;
  const Method* method = find_method(c, selector->name);
  if (!method) {
    report("%s does not respond to %s", c->name, selector->name);
    return reinterpret_cast<Imp>(+[]() -> void* { return nullptr; });
  }
  if (selector->types) {
    const std::string sent = normal_encoding(selector->types);
    const std::string ours = normal_encoding(method->types.c_str());
    if (sent != ours) {
      report(
          "[%s %s]: the call site encodes %s, Metal has %s",
          c->name,
          selector->name,
          sent.c_str(),
          ours.c_str());
      return reinterpret_cast<Imp>(+[]() -> void* { return nullptr; });
    }
  }
  entry = {c, selector, method->imp};
  return method->imp;
}

// Saves every register that may carry an argument, asks for the implementation and jumps there.
#if defined(__x86_64__)
asm(R"(
.text
.globl objc_msgSend
.type objc_msgSend, @function
objc_msgSend:
  push %rbp
  mov %rsp, %rbp
  sub $192, %rsp
  mov %rdi, (%rsp)
  mov %rsi, 8(%rsp)
  mov %rdx, 16(%rsp)
  mov %rcx, 24(%rsp)
  mov %r8, 32(%rsp)
  mov %r9, 40(%rsp)
  mov %rax, 48(%rsp)
  movups %xmm0, 64(%rsp)
  movups %xmm1, 80(%rsp)
  movups %xmm2, 96(%rsp)
  movups %xmm3, 112(%rsp)
  movups %xmm4, 128(%rsp)
  movups %xmm5, 144(%rsp)
  movups %xmm6, 160(%rsp)
  movups %xmm7, 176(%rsp)
  call fake_objc_lookup@PLT
  mov %rax, %r11
  movups 64(%rsp), %xmm0
  movups 80(%rsp), %xmm1
  movups 96(%rsp), %xmm2
  movups 112(%rsp), %xmm3
  movups 128(%rsp), %xmm4
  movups 144(%rsp), %xmm5
  movups 160(%rsp), %xmm6
  movups 176(%rsp), %xmm7
  mov (%rsp), %rdi
  mov 8(%rsp), %rsi
  mov 16(%rsp), %rdx
  mov 24(%rsp), %rcx
  mov 32(%rsp), %r8
  mov 40(%rsp), %r9
  mov 48(%rsp), %rax
  leave
  jmp *%r11
.size objc_msgSend, .-objc_msgSend
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl objc_msgSend
.type objc_msgSend, %function
objc_msgSend:
  stp x29, x30, [sp, #-16]!
  mov x29, sp
  sub sp, sp, #208
  stp x0, x1, [sp]
  stp x2, x3, [sp, #16]
  stp x4, x5, [sp, #32]
  stp x6, x7, [sp, #48]
  str x8, [sp, #64]
  stp q0, q1, [sp, #80]
  stp q2, q3, [sp, #112]
  stp q4, q5, [sp, #144]
  stp q6, q7, [sp, #176]
  bl fake_objc_lookup
  mov x16, x0
  ldp q0, q1, [sp, #80]
  ldp q2, q3, [sp, #112]
  ldp q4, q5, [sp, #144]
  ldp q6, q7, [sp, #176]
  ldr x8, [sp, #64]
  ldp x6, x7, [sp, #48]
  ldp x4, x5, [sp, #32]
  ldp x2, x3, [sp, #16]
  ldp x0, x1, [sp]
  mov sp, x29
  ldp x29, x30, [sp], #16
  br x16
.size objc_msgSend, .-objc_msgSend
)");
#else
#error "objc_msgSend is written for x86-64 and AArch64"
#endif

extern "C" {

void* objc_retain(void* object) { return retain(object); }
void objc_release(void* object) { release(object); }
void* objc_autorelease(void* object) { return autorelease(object); }
void* objc_autoreleaseReturnValue(void* object) { return autorelease(object); }
void* objc_retainAutoreleaseReturnValue(void* object) { return autorelease(retain(object)); }
void* objc_retainAutorelease(void* object) { return autorelease(retain(object)); }
void* objc_retainAutoreleasedReturnValue(void* object) { return retain(object); }
void* objc_unsafeClaimAutoreleasedReturnValue(void* object) { return object; }
void objc_storeStrong(void** place, void* object) {
  void* before = *place;
  *place = retain(object);
  release(before);
}

void* objc_autoreleasePoolPush() {
  t_pools.emplace_back();
  return reinterpret_cast<void*>(t_pools.size());
}
void objc_autoreleasePoolPop(void* pool) {
  while (t_pools.size() >= reinterpret_cast<size_t>(pool)) {
    const std::vector<void*> objects = std::move(t_pools.back());
    t_pools.pop_back();
    for (void* object : objects) release(object);
  }
}

// Every object file with Objective-C in it announces itself; there are no classes in ours.
void __objc_load(void*) {}

// device.mm lets no exception out, so the frames that name this never see one.
int __gnustep_objcxx_personality_v0(int, int, uint64_t, void*, void*) { std::abort(); }

}  // extern "C"

// References of compiled code to classes: variables that hold the class.
#define FAKE_METAL_CLASSES(X)     \
  X(NSObject)                     \
  X(NSString)                     \
  X(NSError)                      \
  X(MTLCompileOptions)            \
  X(MTLFunctionConstantValues)    \
  X(MTLComputePipelineDescriptor) \
  X(MTLResidencySetDescriptor)
#define FAKE_METAL_REFERENCE(name) void* reference_##name asm("._OBJC_REF_CLASS_" #name);
FAKE_METAL_CLASSES(FAKE_METAL_REFERENCE)
// Constant strings point to this object itself.
Class constant_string_class asm("._OBJC_CLASS_NSConstantString");

// Before the initialisers of other files, which may already hold constant strings.
__attribute__((constructor(101))) static void define_classes() {
  define_foundation();
  define_device_classes();
  define_command_classes();
  constant_string_class = *define_class("NSConstantString", find_class("NSString"));
  g_constant_string = &constant_string_class;
#define FAKE_METAL_RESOLVE(name) reference_##name = find_class(#name);
  FAKE_METAL_CLASSES(FAKE_METAL_RESOLVE)
}
