// How tests steer the simulated device and read what it found.
//
// Settings have a name and a number. Each starts from the environment variable FAKE_METAL_<NAME>,
// where there is one, and can be changed with fake_metal_set() at any time.
#pragma once

#include <atomic>
#include <cstdint>

namespace fake_metal {

struct Setting {
  const char* name;
  std::atomic<uint64_t> value;
  uint64_t initial = 0;  ///< set when the environment has been read
};

struct Settings {
  Setting seed{"seed", {0}};        ///< order of lanes and threadgroups; 0: in sequence
  Setting race{"race", {0}};        ///< 1: libraries are compiled with the memory checker
  Setting workers{"workers", {2}};  ///< operating system threads that run threadgroups
  Setting residency_sets{"residency_sets", {0}};  ///< 0: as macOS 14, 1: as macOS 15
  Setting apple7{"apple7", {1}};                  ///< 0: the device is of an older family
  Setting unified_memory{"unified_memory", {1}};
  Setting max_buffer_bytes{"max_buffer_bytes", {uint64_t{14} << 30}};
  Setting working_set_bytes{"working_set_bytes", {uint64_t{16} << 30}};
  Setting max_threads{"max_threads", {1024}};  ///< of every pipeline
  // Failures: the n-th one from now fails, once; 0: none.
  Setting fail_allocation{"fail_allocation", {0}};
  Setting fail_library{"fail_library", {0}};
  Setting fail_pipeline{"fail_pipeline", {0}};
  Setting fail_command{"fail_command", {0}};
  Setting fail_command_code{"fail_command_code", {1}};  ///< MTLCommandBufferError
  Setting ignore_barriers{"ignore_barriers", {0}};      ///< 1: memoryBarrier calls have no effect
  Setting execute{"execute", {1}};  ///< 0: command buffers are done at once and do nothing
  Setting hold{"hold", {0}};        ///< 1: committed command buffers do not start
};
Settings& settings();

/// Counts down a failure setting; true when this is the one to fail.
bool fails_now(Setting& setting);

struct Counters {
  std::atomic<uint64_t> dispatches{0}, barriers{0}, command_buffers{0}, libraries{0};
  std::atomic<uint64_t> buffers{0}, buffer_bytes{0};  ///< alive now
};
Counters& counters();

/// Adds a line to what fake_metal_reports() returns.
__attribute__((format(printf, 1, 2))) void report(const char* format, ...);

}  // namespace fake_metal

#pragma GCC visibility push(default)
extern "C" {
/// 0, or -1 when there is no such setting.
int fake_metal_set(const char* name, uint64_t value);
/// Sets everything back to where it started.
void fake_metal_reset();
/// A setting, or one of: live_objects, dispatches, barriers, command_buffers, libraries, buffers,
/// buffer_bytes. UINT64_MAX when there is none.
uint64_t fake_metal_get(const char* name);
/// "class selector types" of every method, inherited ones included, one a line.
void fake_metal_methods(char* text, int capacity);
/// Number of findings so far, of the validation and of the kernel checker. With `text`, writes them
/// one a line (cut at `capacity` bytes, always terminated) and forgets them.
int fake_metal_reports(char* text, int capacity);
}
#pragma GCC visibility pop
