// Turns a crash in a kernel into a finding and a failed dispatch.
#pragma once

namespace msl {

/// Once a process. Crashes outside kernels go to whoever handled them before.
void install_fault_handler();

}  // namespace msl
