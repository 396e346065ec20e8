// Asking the operating system for tile registers.
#pragma once

#include <string>

namespace trimaran::amx {

// Asks for this process and all its threads; empty if they may use tiles, else why not.
std::string request_tiles();

}  // namespace trimaran::amx
