#include "executor.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <map>
#include <mutex>

#include "../runtime/emu.h"
#include "control.h"

namespace fake_metal {
namespace {

// FNV-1a with two offsets: 128 bits.
std::string hash(const std::string& text) {
  std::string out;
  for (uint64_t h : {uint64_t{0xcbf29ce484222325}, uint64_t{0x6c62272e07bb0142}}) {
    for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    char digits[17];
    std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(h));
    out += digits;
  }
  return out;
}

// The file that holds a function.
std::string file_of(void* function) {
  Dl_info info;
  return dladdr(function, &info) && info.dli_fname ? info.dli_fname : "";
}

// Kernels look for what they call in the runtime (__msl_*, __tsan_*) in the global scope, and the
// engine has loaded us, and with us the runtime, into a scope of its own.
void make_runtime_visible() {
  const std::string runtime = file_of(reinterpret_cast<void*>(&msl_open));
  dlopen(runtime.c_str(), RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
}

std::string read(const std::string& path) {
  std::string out;
  if (FILE* file = std::fopen(path.c_str(), "r")) {
    char part[4096];
    size_t n = 0;
    while ((n = std::fread(part, 1, sizeof(part), file)) > 0) out.append(part, n);
    std::fclose(file);
  }
  return out;
}

std::string environment(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

Executable make(const std::string& source, bool race) {
  static std::once_flag once;
  std::call_once(once, make_runtime_visible);
  const std::string self = file_of(reinterpret_cast<void*>(&compile));
  const std::string folder =
      environment("METAL_EMU_CACHE", self.substr(0, self.rfind('/')) + "/kernels");
  const std::string command =
      environment("METAL_EMU_COMPILER", "python3 -m tests.metal_emu.compiler exec");
  const std::string stamp = environment("METAL_EMU_STAMP", "");
  mkdir(folder.c_str(), 0777);
  const std::string library =
      folder + "/" + hash(command + '\n' + stamp + '\n' + source) + (race ? "-race.so" : ".so");
  Executable out;
  if (stamp.empty() || access(library.c_str(), R_OK) != 0) {
    // Names of its own, so that processes that make the same library do not meet.
    char work[] = "/tmp/metal-XXXXXX";
    if (!mkdtemp(work)) {
      out.error = "no temporary folder";
      return out;
    }
    const std::string text = std::string(work) + "/kernels.metal", log = std::string(work) + "/log";
    const std::string made = library + "." + std::to_string(getpid()) + (work + 11);
    FILE* file = std::fopen(text.c_str(), "w");
    const bool written =
        file && std::fwrite(source.data(), 1, source.size(), file) == source.size();
    if (file) std::fclose(file);
    const std::string line = command + " '" + text + "' -o '" + made + "'" +
                             (race ? " --race" : "") + " >/dev/null 2>'" + log + "'";
    const int status = written ? std::system(line.c_str()) : -1;
    if (status != 0 || std::rename(made.c_str(), library.c_str()) != 0) {
      out.error = read(log);
      if (out.error.empty()) out.error = "the compiler failed: " + line;
    }
    for (const std::string& path : {text, log, made}) unlink(path.c_str());
    rmdir(work);
    if (!out.error.empty()) return out;
  }
  counters().libraries++;
  out.handle = msl_open(library.c_str());
  if (!out.handle) out.error = msl_error();
  return out;
}

}  // namespace

Executable compile(const std::string& source, bool race) {
  static std::mutex* mutex = new std::mutex;
  static auto* known = new std::map<std::pair<std::string, bool>, std::shared_future<Executable>>;
  std::promise<Executable> promise;
  std::shared_future<Executable> result;
  bool ours = false;
  {
    const std::lock_guard lock(*mutex);
    auto [at, added] = known->try_emplace({source, race});
    if (added) at->second = promise.get_future().share();
    ours = added;
    result = at->second;
  }
  if (ours) promise.set_value(make(source, race));
  return result.get();
}

}  // namespace fake_metal
