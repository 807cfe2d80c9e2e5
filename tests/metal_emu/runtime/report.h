// Findings, as text.
#pragma once

#include <cstdint>
#include <string>

namespace msl {

/// Adds a finding about the code at `site` (a return address; null: none). Equal findings are
/// kept once.
[[gnu::format(printf, 2, 3)]] void report(const void* site, const char* format, ...);

/// Sites already reported for `kind` need no text: false, quickly, the second time.
bool first_report(const void* site, unsigned kind);

/// See msl_reports.
int take_reports(char* text, int capacity);

/// What msl_error returns on this thread.
void set_error(const std::string& message);
const char* last_error();

}  // namespace msl
