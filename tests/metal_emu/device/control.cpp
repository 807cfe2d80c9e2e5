#include "control.h"

#include <cctype>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "../runtime/emu.h"
#include "objc_runtime.h"

namespace fake_metal {
namespace {

std::vector<Setting*> all_settings(Settings& s) {
  return {
      &s.seed,
      &s.race,
      &s.workers,
      &s.residency_sets,
      &s.apple7,
      &s.unified_memory,
      &s.max_buffer_bytes,
      &s.working_set_bytes,
      &s.max_threads,
      &s.fail_allocation,
      &s.fail_library,
      &s.fail_pipeline,
      &s.fail_command,
      &s.fail_command_code,
      &s.ignore_barriers,
      &s.execute,
      &s.hold};
}

struct Reports {
  std::mutex mutex;
  std::vector<std::string> lines;
};
Reports& reports() {
  static Reports* r = new Reports;
  return *r;
}

}  // namespace

Settings& settings() {
  static Settings* s = [] {
    auto* made = new Settings;
    for (Setting* setting : all_settings(*made)) {
      std::string variable = "FAKE_METAL_";
      for (const char* p = setting->name; *p; ++p) variable += static_cast<char>(std::toupper(*p));
      if (const char* text = std::getenv(variable.c_str())) {
        setting->value = std::strtoull(text, nullptr, 0);
      }
      setting->initial = setting->value;
    }
    return made;
  }();
  return *s;
}

Counters& counters() {
  static Counters* c = new Counters;
  return *c;
}

bool fails_now(Setting& setting) {
  uint64_t left = setting.value;
  while (left > 0 && !setting.value.compare_exchange_weak(left, left - 1)) {
  }
  return left == 1;
}

void report(const char* format, ...) {
  char line[1024];
  va_list values;
  va_start(values, format);
  std::vsnprintf(line, sizeof(line), format, values);
  va_end(values);
  std::fprintf(stderr, "simulated Metal: %s\n", line);
  const std::lock_guard lock(reports().mutex);
  for (const std::string& known : reports().lines) {
    if (known == line) return;
  }
  reports().lines.push_back(line);
}

}  // namespace fake_metal

using namespace fake_metal;

extern "C" int fake_metal_set(const char* name, uint64_t value) {
  for (Setting* setting : all_settings(settings())) {
    if (std::strcmp(setting->name, name) == 0) {
      setting->value = value;
      return 0;
    }
  }
  return -1;
}

extern "C" void fake_metal_reset() {
  for (Setting* setting : all_settings(settings())) setting->value = setting->initial;
}

extern "C" uint64_t fake_metal_get(const char* name) {
  for (Setting* setting : all_settings(settings())) {
    if (std::strcmp(setting->name, name) == 0) return setting->value;
  }
  const Counters& c = counters();
  const std::string key = name;
  if (key == "live_objects") return live_objects();
  if (key == "dispatches") return c.dispatches;
  if (key == "barriers") return c.barriers;
  if (key == "command_buffers") return c.command_buffers;
  if (key == "libraries") return c.libraries;
  if (key == "buffers") return c.buffers;
  if (key == "buffer_bytes") return c.buffer_bytes;
  return UINT64_MAX;
}

extern "C" void fake_metal_methods(char* text, int capacity) {
  std::snprintf(text, static_cast<size_t>(capacity), "%s", describe_methods().c_str());
}

extern "C" int fake_metal_reports(char* text, int capacity) {
  const std::lock_guard lock(reports().mutex);
  std::vector<std::string>& lines = reports().lines;
  const int n = static_cast<int>(lines.size()) + msl_reports(nullptr, 0);
  if (!text || capacity <= 0) return n;
  std::string all;
  for (const std::string& line : lines) all += line + "\n";
  lines.clear();
  std::snprintf(text, static_cast<size_t>(capacity), "%s", all.c_str());
  const int used = static_cast<int>(std::strlen(text));
  if (capacity - used > 1) {
    msl_reports(text + used, capacity - used);
  } else {
    char rest[16];
    msl_reports(rest, sizeof(rest));
  }
  return n;
}
