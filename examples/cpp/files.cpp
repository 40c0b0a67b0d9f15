#include "files.h"

#include <ATen/ops/empty.h>

#include <cctype>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace {

constexpr int64_t kMost = int64_t{1} << 30;  // bytes of a file's numbers

void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error("expected " + what);
}

// A number of a PNM header, past blanks and comments.
int64_t header_number(std::istream& in) {
  for (in >> std::ws; in.peek() == '#'; in >> std::ws) {
    std::string comment;
    std::getline(in, comment);
  }
  int64_t value = 0;
  expect(static_cast<bool>(in >> value), "a whole PNM header");
  return value;
}

void fill(std::istream& in, at::Tensor& tensor) {
  const auto bytes = static_cast<std::streamsize>(tensor.nbytes());
  in.read(static_cast<char*>(tensor.mutable_data_ptr()), bytes);
  expect(in.gcount() == bytes,
         std::to_string(bytes) + " bytes after the header, got " + std::to_string(in.gcount()));
}

at::Tensor read_pnm(std::istream& in, int64_t channels) {
  const int64_t width = header_number(in), height = header_number(in), most = header_number(in);
  expect(width > 0 && height > 0 && width <= kMost / channels / height, "a size from 1 x 1 on");
  expect(most == 255, "eight bits a channel (255), got " + std::to_string(most));
  expect(std::isspace(in.get()) != 0, "a blank after the header");
  at::Tensor pixels = at::empty({height, width, channels}, at::kByte);
  fill(in, pixels);
  return pixels.permute({2, 0, 1}).unsqueeze(0).contiguous();
}

// The text that follows a key of the header, a Python dict.
std::string after(const std::string& header, const std::string& key) {
  const size_t at = header.find("'" + key + "':");
  expect(at != std::string::npos, "a .npy header with '" + key + "'");
  return header.substr(at + key.size() + 3);
}

at::Tensor read_npy(std::istream& in) {
  const int major = in.get();
  in.get();
  int64_t length = 0;
  for (int byte = 0; byte < (major == 1 ? 2 : 4); ++byte) {
    length |= static_cast<int64_t>(in.get() & 255) << (8 * byte);
  }
  expect(in.good() && length < (1 << 20), "a whole .npy header");
  std::string header(static_cast<size_t>(length), ' ');
  in.read(header.data(), length);
  expect(after(header, "descr").find("'<f4'") <= 1, "float32 ('<f4')");
  expect(after(header, "fortran_order").find("False") <= 1, "rows in order, not Fortran's");
  std::string text = after(header, "shape");
  text = text.substr(text.find('(') + 1);
  std::istringstream extents(text.substr(0, text.find(')')));
  std::vector<int64_t> shape;
  int64_t total = 1, extent = 0;
  for (char comma; extents >> extent; extents >> comma) {
    expect(extent >= 0 && (extent == 0 || total <= kMost / 4 / extent), "at most 1 GB");
    shape.push_back(extent);
    total *= extent;
  }
  at::Tensor values = at::empty(shape, at::kFloat);
  fill(in, values);
  return values;
}

}  // namespace

at::Tensor read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  expect(in.good(), "a file that can be read");
  char magic[6] = {};
  in.read(magic, 2);
  if (std::memcmp(magic, "P5", 2) == 0) return read_pnm(in, 1);
  if (std::memcmp(magic, "P6", 2) == 0) return read_pnm(in, 3);
  in.read(magic + 2, 4);
  expect(std::memcmp(magic, "\x93NUMPY", 6) == 0, "a binary PGM, a binary PPM or a .npy");
  return read_npy(in);
}
