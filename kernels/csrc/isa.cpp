// Run-time choice of the instruction set, and the weight layout all of them share.
#ifdef VQCODEC_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace vqcodec {
namespace {

struct Choice {
  const char* name;
  const KernelTable* table;
};

bool has_avx2() {
#ifdef VQCODEC_X86
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool has_avx512() {
#ifdef VQCODEC_X86
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

#ifdef VQCODEC_X86
// The system has to save the tiles when it switches threads, and asks to be asked.
bool has_amx() {
#ifdef __linux__
  constexpr unsigned kTiles = 1u << 24, kBfloat16 = 1u << 22;
  constexpr unsigned kSaved = 3u << 17;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d & kTiles) == 0 || (d & kBfloat16) == 0) return false;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kSaved) == kSaved && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

Choice choose() {
  const char* forced = std::getenv("VQCODEC_ISA");
  const std::string want = forced ? forced : "";
#ifdef VQCODEC_X86
  if (want == "amx" || (want.empty() && has_amx() && amx_multiplies())) {
    if (!has_amx())
      throw std::runtime_error("VQCODEC_ISA=amx, but this CPU or system lacks AMX with bfloat16");
    return {"amx", amx_kernels()};
  }
  if (want == "avx512_bf16") {
    if (!has_avx512_bf16())
      throw std::runtime_error("VQCODEC_ISA=avx512_bf16, but this CPU lacks AVX-512 BF16");
    return {"avx512_bf16", avx512_bf16_kernels()};
  }
  if (want == "avx512" || (want.empty() && has_avx512())) {
    if (!has_avx512()) throw std::runtime_error("VQCODEC_ISA=avx512, but this CPU lacks AVX-512 VNNI");
    return {"avx512", avx512_kernels()};
  }
  if (want == "avx2" || (want.empty() && has_avx2())) {
    if (!has_avx2()) throw std::runtime_error("VQCODEC_ISA=avx2, but this CPU lacks AVX2");
    return {"avx2", avx2_kernels()};
  }
#endif
  if (want.empty() || want == "portable") return {"portable", portable_kernels()};
  throw std::runtime_error("VQCODEC_ISA=" + want + ": expected portable, avx2, avx512, avx512_bf16 or amx");
}

const Choice& active() {
  static const Choice choice = choose();
  return choice;
}

}  // namespace

const KernelTable* active_kernels() { return active().table; }
const char* active_isa() { return active().name; }

void pack_weight(const int8_t* weight, int outputs, int inputs, int8_t* packed) {
  const int blocks = padded_outputs(outputs) / 16;
  const int quads = padded_inputs(inputs) / 4;
  std::memset(packed, 0, static_cast<size_t>(blocks) * quads * 64);
  for (int o = 0; o < outputs; ++o)
    for (int i = 0; i < inputs; ++i)
      packed[((static_cast<size_t>(o / 16) * quads + i / 4) * 16 + o % 16) * 4 + i % 4] =
          weight[static_cast<size_t>(o) * inputs + i];
}

}  // namespace vqcodec
