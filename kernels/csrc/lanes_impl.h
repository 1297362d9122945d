// Vectors of VQCODEC_LANES floats for the translation unit of one instruction set.
#include <cstdint>
#include <cstring>

namespace vqcodec {
namespace {

constexpr int kLanes = VQCODEC_LANES;
typedef float VecF __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef float Vec8 __attribute__((vector_size(32)));
typedef int32_t Vec8I __attribute__((vector_size(32)));

inline VecF load(const float* p) {
  VecF v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, VecF v) { std::memcpy(p, &v, sizeof v); }

inline VecF splat(float value) { return VecF{} + value; }

}  // namespace
}  // namespace vqcodec
