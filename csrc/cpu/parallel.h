// How a kernel asks for threads without knowing whose they are: torch's pool in the extension,
// std::thread in the native tests.
#pragma once

#include <cstdint>

namespace oltr {

struct Parallel {
  // Runs body(context, i) for every i in [0, tasks), in any order, on any threads.
  void (*run)(int64_t tasks, void (*body)(void* context, int64_t i), void* context);
};

}  // namespace oltr
