// Element types and the conversions between them, free of torch.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/merge.h"

namespace oltr {

enum class Dtype : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Row-major matrices (rows contiguous) as the kernels see them; null data means "absent".
struct Matrix {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
};
struct MutableMatrix {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
};

OLTR_HD float bits_to_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}
OLTR_HD uint32_t float_to_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return bits;
}

OLTR_HD float bfloat16_to_float(uint16_t h) { return bits_to_float(uint32_t{h} << 16); }
// Round to nearest even; NaN stays NaN.
OLTR_HD uint16_t float_to_bfloat16(float f) {
  const uint32_t bits = float_to_bits(f);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return f != f ? uint16_t{0x7fc0} : static_cast<uint16_t>(rounded >> 16);
}

// IEEE half by arithmetic, so that subnormals need no branch: shift exponent and mantissa into a
// float's place and let one multiplication by 2^112 (or 2^-112) move the bias.
OLTR_HD float float16_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t{h} & 0x8000u) << 16;
  const uint32_t body = (uint32_t{h} & 0x7fffu) << 13;
  const float finite = bits_to_float(body) * bits_to_float(0x77800000u);
  const uint32_t special = body | 0x7f800000u;  // infinity or NaN
  const uint32_t magnitude = body >= 0x0f800000u ? special : float_to_bits(finite);
  return bits_to_float(sign | magnitude);
}
// Round to nearest even: adding 2^(exponent + 13) in float rounds the mantissa at the half's last
// bit, and at the subnormal's last bit when the exponent is held at its smallest.
OLTR_HD uint16_t float_to_float16(float f) {
  const uint32_t bits = float_to_bits(f);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const float scaled = bits_to_float(bits & 0x7fffffffu) * bits_to_float(0x77800000u) *
                       bits_to_float(0x08800000u);  // overflow to infinity, then scale back
  const uint32_t shifted = bits + bits;
  uint32_t bias = shifted & 0xff000000u;
  if (bias < 0x71000000u) bias = 0x71000000u;
  const float base = bits_to_float((bias >> 1) + 0x07800000u) + scaled;
  const uint32_t out = float_to_bits(base);
  const uint32_t magnitude = ((out >> 13) & 0x7c00u) + (out & 0x0fffu);
  return static_cast<uint16_t>(sign | (shifted > 0xff000000u ? 0x7e00u : magnitude));
}

OLTR_HD int64_t dtype_bytes(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// n elements from `first`, converted to the accumulator type.
template <class T>
OLTR_HD void convert_in(const void* data, Dtype dtype, int64_t first, int64_t n, T* out) {
  switch (dtype) {
    case Dtype::kFloat32: {
      const float* p = static_cast<const float*>(data) + first;
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(p[i]);
      break;
    }
    case Dtype::kFloat64: {
      const double* p = static_cast<const double*>(data) + first;
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(p[i]);
      break;
    }
    case Dtype::kBFloat16: {
      const uint16_t* p = static_cast<const uint16_t*>(data) + first;
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(bfloat16_to_float(p[i]));
      break;
    }
    case Dtype::kFloat16: {
      const uint16_t* p = static_cast<const uint16_t*>(data) + first;
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(float16_to_float(p[i]));
      break;
    }
  }
}

template <class T>
OLTR_HD void convert_out(const T* in, int64_t n, void* data, Dtype dtype, int64_t first) {
  switch (dtype) {
    case Dtype::kFloat32: {
      float* p = static_cast<float*>(data) + first;
      for (int64_t i = 0; i < n; ++i) p[i] = static_cast<float>(in[i]);
      break;
    }
    case Dtype::kFloat64: {
      double* p = static_cast<double*>(data) + first;
      for (int64_t i = 0; i < n; ++i) p[i] = static_cast<double>(in[i]);
      break;
    }
    case Dtype::kBFloat16: {
      uint16_t* p = static_cast<uint16_t*>(data) + first;
      for (int64_t i = 0; i < n; ++i) p[i] = float_to_bfloat16(static_cast<float>(in[i]));
      break;
    }
    case Dtype::kFloat16: {
      uint16_t* p = static_cast<uint16_t*>(data) + first;
      for (int64_t i = 0; i < n; ++i) p[i] = float_to_float16(static_cast<float>(in[i]));
      break;
    }
  }
}

}  // namespace oltr
