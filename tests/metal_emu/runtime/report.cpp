#include "report.h"

#include <cstdarg>
#include <cstdio>
#include <map>
#include <mutex>
#include <unordered_set>

#include "library.h"

namespace msl {
namespace {

constexpr size_t kMaxReports = 200;  // a broken kernel can say the same thing in many ways

struct Reports {
  std::mutex mutex;
  std::map<std::string, bool> seen;
  std::unordered_set<uint64_t> sites;
  std::string text;
};

Reports& reports() {
  static Reports* all = new Reports;  // never destroyed: threads may outlive main()
  return *all;
}

thread_local std::string error;

}  // namespace

void report(const void* site, const char* format, ...) {
  char message[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(message, sizeof message, format, args);
  va_end(args);
  const std::string where = site ? location_of(site) : std::string();
  const std::string line = where.empty() ? message : where + ": " + message;
  Reports& all = reports();
  std::lock_guard lock(all.mutex);
  if (all.seen.size() < kMaxReports && all.seen.emplace(line, true).second) {
    all.text += line + "\n";
  }
}

bool first_report(const void* site, unsigned kind) {
  Reports& all = reports();
  std::lock_guard lock(all.mutex);
  return all.sites.insert(reinterpret_cast<uint64_t>(site) << 8 | kind).second;
}

int take_reports(char* text, int capacity) {
  Reports& all = reports();
  std::lock_guard lock(all.mutex);
  const int n = static_cast<int>(all.seen.size());
  if (text && capacity > 0) {
    snprintf(text, static_cast<size_t>(capacity), "%s", all.text.c_str());
    all.seen.clear();
    all.sites.clear();
    all.text.clear();
  }
  return n;
}

void set_error(const std::string& message) { error = message; }
const char* last_error() { return error.c_str(); }

}  // namespace msl
