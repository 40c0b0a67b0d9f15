// Memory for a kernel's own use, kept from call to call: on fresh pages the first touch costs more
// than the sums that they hold.
#pragma once

#include <cstddef>

namespace oltr {

// Cache-line aligned, uninitialised; throws std::bad_alloc.
void* scratch_allocate(size_t bytes);
void scratch_free(void* data, size_t bytes) noexcept;

}  // namespace oltr
