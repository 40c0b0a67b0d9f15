// Files to tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

// A binary PGM or PPM: uint8 (1, channels, height, width). A .npy of float32: as it is shaped.
// Throws std::runtime_error that says what was expected.
at::Tensor read_file(const std::string& path);
