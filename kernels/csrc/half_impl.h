// Float16 and bfloat16 to float32 and back, rounded to the nearest, ties to even. NaN stays NaN, and
// no step of it depends on how the processor treats subnormals.

namespace vqcodec {
namespace {

typedef uint16_t VecH __attribute__((vector_size(kLanes * 2)));

// `bits` hold a 16-bit number each.
inline VecF widened(Scalar type, VecU bits) {
  if (type == Scalar::kBfloat16) return (VecF)(bits << 16);
  const VecU magnitude = (bits & 0x7fff) << 13;
  const VecU normal = magnitude + (112u << 23);
  const VecU subnormal = (VecU)((VecF)(magnitude + (113u << 23)) - 0x1p-14f);
  const VecU special = magnitude | 0x7f800000u;
  const VecU finite = (VecI)magnitude < (1 << 23) ? subnormal : normal;
  return (VecF)(((VecI)magnitude < (31 << 23) ? finite : special) | ((bits & 0x8000) << 16));
}

inline VecU narrowed(Scalar type, VecF values) {
  const VecU bits = (VecU)values, magnitude = bits & 0x7fffffffu;
  const VecI is_nan = (VecI)magnitude > 0x7f800000;
  if (type == Scalar::kBfloat16) {
    const VecU rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return is_nan ? splat_bits(0x7fc0) : rounded;
  }
  const VecU normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14 a half's steps are those of 1/2 as a float.
  const VecU subnormal = (VecU)((VecF)magnitude + 0.5f) - 0x3f000000u;
  const VecU finite = (VecI)magnitude < 0x38800000 ? subnormal : normal;
  const VecU rounded = (VecI)magnitude < 0x47800000 ? finite : splat_bits(0x7c00);
  return (is_nan ? splat_bits(0x7e00) : rounded) | ((bits >> 16) & 0x8000);
}

void widen(Scalar type, const char* from, int64_t count, float* to) {
  if (type == Scalar::kFloat32) {
    std::memcpy(to, from, count * 4);
    return;
  }
  int64_t i = 0;
  VecH some{};
  for (; i + kLanes <= count; i += kLanes) {
    std::memcpy(&some, from + 2 * i, sizeof some);
    store(to + i, widened(type, __builtin_convertvector(some, VecU)));
  }
  std::memcpy(&some, from + 2 * i, 2 * (count - i));
  const VecF last = widened(type, __builtin_convertvector(some, VecU));
  std::memcpy(to + i, &last, 4 * (count - i));
}

void narrow(Scalar type, const float* from, int64_t count, char* to) {
  if (type == Scalar::kFloat32) {
    std::memcpy(to, from, count * 4);
    return;
  }
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VecH some = __builtin_convertvector(narrowed(type, load(from + i)), VecH);
    std::memcpy(to + 2 * i, &some, sizeof some);
  }
  VecF last{};
  std::memcpy(&last, from + i, 4 * (count - i));
  const VecH some = __builtin_convertvector(narrowed(type, last), VecH);
  std::memcpy(to + 2 * i, &some, 2 * (count - i));
}

}  // namespace
}  // namespace vqcodec
