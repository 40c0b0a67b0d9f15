// A plugin of qemu's user mode: how many instructions a program ran, and how many of them multiply
// and add vectors. benchmarks/arm_instructions.py compiles it for this machine. The declarations are
// those of qemu-plugin.h that are used here, API version 1 (qemu 4.2 to 8.2), for the distribution
// does not ship that header.
#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

extern "C" {
struct qemu_plugin_tb;
struct qemu_plugin_insn;
using Translated = void (*)(uint64_t id, qemu_plugin_tb*);
using AtExit = void (*)(uint64_t id, void*);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, Translated);
void qemu_plugin_register_atexit_cb(uint64_t id, AtExit, void*);
size_t qemu_plugin_tb_n_insns(const qemu_plugin_tb*);
qemu_plugin_insn* qemu_plugin_tb_get_insn(const qemu_plugin_tb*, size_t);
const void* qemu_plugin_insn_data(const qemu_plugin_insn*);
void qemu_plugin_register_vcpu_tb_exec_inline(qemu_plugin_tb*, int op, void* to, uint64_t add);
}

namespace {

struct Kind {
  const char* name;
  uint32_t mask, bits;
  uint64_t count;
} kinds[] = {{"all", 0, 0, 0},
             {"fmla", 0xbfa0fc00, 0x0e20cc00, 0},
             {"fmla", 0xbf80f400, 0x0f801000, 0},  // by element
             {"bfdot", 0xbfe0fc00, 0x2e40fc00, 0},
             {"bfdot", 0xbfc0f400, 0x0f40f000, 0},  // by element
             {"bfmmla", 0xffe0fc00, 0x6e40ec00, 0}};

void translated(uint64_t, qemu_plugin_tb* tb) {
  for (Kind& kind : kinds) {
    uint64_t n = 0;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); ++i) {
      uint32_t word;
      std::memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word);
      n += (word & kind.mask) == kind.bits;
    }
    if (n > 0) qemu_plugin_register_vcpu_tb_exec_inline(tb, 0, &kind.count, n);  // 0: add
  }
}

void print(uint64_t, void*) {
  for (const Kind& kind : kinds) std::fprintf(stderr, "%s %" PRIu64 "\n", kind.name, kind.count);
}

}  // namespace

extern "C" {
int qemu_plugin_version = 1;

int qemu_plugin_install(uint64_t id, const void*, int, char**) {
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, print, nullptr);
  return 0;
}
}
