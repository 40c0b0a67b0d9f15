// Labels files by a package of `oltr export --format aoti`, without Python:
//
//   label MODEL.aoti.pt2 [--ops _oltr_cpu.abi3.so] FILE...
//
// FILE is a binary PGM or PPM, or a .npy of float32 embeddings (N, D). Prints a line for each image
// or row: its name, label or "unknown", and confidence, with tabs between. A file that cannot be
// used is told on stderr, the others are answered, and the status is 1.
#include <ATen/Functions.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "files.h"

namespace {

// What an error says, without torch's list of frames.
std::string one_line(const std::exception& error) {
  const auto* of_torch = dynamic_cast<const c10::Error*>(&error);
  const std::string text = of_torch ? of_torch->what_without_backtrace() : error.what();
  return text.substr(0, text.find('\n'));
}

using Metadata = std::unordered_map<std::string, std::string>;

constexpr size_t kBatch = 64;

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, at);) parts.push_back(part);
  return parts;
}

// What the program takes, as it says itself: "uint8 (rows, 3, 32, 32)".
struct Input {
  std::string words, dtype;
  std::vector<std::string> extents;

  explicit Input(const std::string& text) : words(text) {
    const size_t open = text.find(" (");
    dtype = text.substr(0, open);
    std::string inner = text.substr(open + 2);
    inner.pop_back();
    for (const std::string& part : split(inner, ',')) {
      extents.push_back(part.substr(part.find_first_not_of(' ')));
    }
  }

  bool takes(const at::Tensor& x) const {
    const bool same = (dtype == "uint8" ? at::kByte : at::kFloat) == x.scalar_type();
    if (!same || x.dim() != static_cast<int64_t>(extents.size())) return false;
    for (size_t axis = 0; axis < extents.size(); ++axis) {
      const bool fixed = extents[axis].find_first_not_of("0123456789") == std::string::npos;
      if (fixed && std::stoll(extents[axis]) != x.size(static_cast<int64_t>(axis))) return false;
    }
    return true;
  }
};

class Labels {
 public:
  explicit Labels(const std::string& package)
      : model_(package),
        metadata_(model_.get_metadata()),
        input_(text("input")),
        names_(split(text("class_names"), '\n')) {}

  void add(const std::string& path) {
    at::Tensor x = read_file(path);
    if (!input_.takes(x)) {
      std::ostringstream got;
      got << x.toString() << ' ' << x.sizes();
      throw std::runtime_error("expected " + input_.words + ", got " + got.str());
    }
    // images of one size go together
    if (!parts_.empty() && (parts_[0].sizes().slice(1) != x.sizes().slice(1))) answer();
    for (int64_t row = 0; row < x.size(0); ++row) {
      const bool alone = x.scalar_type() == at::kByte;
      rows_.push_back(alone ? path : path + "[" + std::to_string(row) + "]");
    }
    parts_.push_back(x);
    if (rows_.size() >= kBatch) answer();
  }

  void answer() {
    // taken out first: should this fail, later files are not answered under these names
    const std::vector<std::string> rows = std::exchange(rows_, {});
    const std::vector<at::Tensor> parts = std::exchange(parts_, {});
    if (rows.empty()) return;
    const std::vector<at::Tensor> out = model_.run({at::cat(parts)});
    const int64_t* label = out.at(0).const_data_ptr<int64_t>();
    const double* confidence = out.at(1).const_data_ptr<double>();
    for (size_t row = 0; row < rows.size(); ++row) {
      const char* name = label[row] < 0 ? "unknown" : names_.at(label[row]).c_str();
      std::printf("%s\t%s\t%.9g\n", rows[row].c_str(), name, confidence[row]);
    }
  }

 private:
  std::string text(const std::string& key) const {
    const auto found = metadata_.find(key);
    if (found == metadata_.end()) {
      throw std::runtime_error(
          "expected a package of `oltr export --format aoti`, got one without " + key);
    }
    return found->second;
  }

  torch::inductor::AOTIModelPackageLoader model_;
  Metadata metadata_;
  Input input_;
  std::vector<std::string> names_;
  std::vector<std::string> rows_;
  std::vector<at::Tensor> parts_;
};

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() >= 3 && words[1] == "--ops") {
    // registers them; the program looks them up by name
    if (dlopen(words[2].c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      std::cerr << "label: " << dlerror() << '\n';
      return 2;
    }
    words.erase(words.begin() + 1, words.begin() + 3);
  }
  if (words.size() < 2) {
    std::cerr << "usage: label MODEL.aoti.pt2 [--ops _oltr_cpu.abi3.so] FILE...\n";
    return 2;
  }
  c10::InferenceMode inference;
  int status = 0;
  try {
    Labels labels(words[0]);
    for (size_t n = 1; n < words.size(); ++n) {
      try {
        labels.add(words[n]);
      } catch (const std::exception& error) {
        std::cerr << "label: " << words[n] << ": " << one_line(error) << '\n';
        status = 1;
      }
    }
    labels.answer();
  } catch (const std::exception& error) {
    std::cerr << "label: " << words[0] << ": " << one_line(error) << '\n';
    return 2;
  }
  return status;
}
