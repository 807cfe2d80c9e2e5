// The stand-in is emu/metal.h, which precedes the rewritten text.
#pragma once
namespace metal {}
