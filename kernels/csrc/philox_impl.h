// Standard normals by Philox4x32-10 and the transform of Box and Muller, as vqcodec_kernels/philox.py
// defines them, with the same bits on every instruction set: one sequence of operations without
// fused products. Included by gaussian_sample_impl.h.
//
// A counter's four words, and in the end its four normals, are four lanes beside each other. Normals
// are off by less than 5 * 2^-24 of their size, by the worst of all 2^24 radii and of all 2^24 angles.
#include "kernels.h"

namespace vqcodec {
namespace {

typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef uint64_t VecL __attribute__((vector_size(kLanes * 4)));

constexpr int kRounds = 10;
// Vectors at work side by side, to hide the latency of the rounds.
constexpr int kWays = 4;
// Noise is drawn in multiples of so many.
constexpr int kNoiseStep = kWays * kLanes;

inline VecU splat_bits(uint32_t value) { return VecU{} + value; }

// a and b for the even and the odd 64-bit lanes.
inline VecL alternate(uint64_t a, uint64_t b) {
  VecL v{};
  for (int i = 0; i < kLanes / 2; ++i) v[i] = i % 2 ? b : a;
  return v;
}

// What each round adds to the counter's words 0 and 2.
struct NoiseKey {
  VecU rounds[kRounds];

  explicit NoiseKey(uint64_t seed) {
    uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
    for (VecU& round : rounds) {
      round = (VecU)alternate(low, high);
      low += 0x9E3779B9u;
      high += 0xBB67AE85u;
    }
  }
};

inline VecU philox_round(VecU words, VecU multipliers, VecU key) {
  // Low and high word of the products of words 0 and 2; they go to the other end, reversed.
  const VecU products = (VecU)reverse_fours(multiply_even((VecI)words, (VecI)multipliers));
  return products ^ (VecU)((VecL)words >> 32) ^ key;
}

// sqrt(-2 ln u) for u = ((word >> 8) + 1) * 2^-24.
inline VecF noise_radius(VecU words) {
  const VecF ticks = __builtin_convertvector((VecI)((words >> 8) + 1), VecF);
  // ticks = u * 2^24 = 2^(exponent + 24) * (1 + f), 1 + f in [sqrt(1/2), sqrt(2)).
  constexpr uint32_t kRootHalf = 0x3f3504f3;
  const VecU bits = (VecU)ticks - (kRootHalf + (24u << 23));
  const VecF exponent = __builtin_convertvector((VecI)bits >> 23, VecF);
  const VecF f = (VecF)((bits & 0x7fffff) + kRootHalf) - 1.0f;
  // -2 ln(1 + f) = -2 f + f^2 + f^3 p(f): p is within 2^-27.3 of it, relatively.
  const VecF square = f * f, fourth = square * square;
  const VecF low = (f * 0x1.547244p-2f - 0x1.99a008p-2f) * square + (f * 0x1.000226p-1f - 0x1.555554p-1f);
  const VecF high = (f * 0x1.38b59p-3f - 0x1.055b6cp-2f) * square + (f * 0x1.0d854p-2f - 0x1.22da1cp-2f);
  const VecF p = high * fourth + low;
  // -2 ln 2 in two parts, the products of the first exact.
  const VecF tail = square * (f * p) + exponent * 0x1.bd0106p-12f + square;
  return square_root((tail - (f + f)) - exponent * 0x1.63p0f);
}

// Even and odd normals of a counter's pairs of words (a for even, b for odd lanes).
inline void box_muller(VecU first, VecU second, VecF* even, VecF* odd) {
  const VecF radius = noise_radius(first);
  // In units of 2 pi / 2^32; less the nearest multiple of a quarter turn, exactly.
  constexpr uint32_t kEighth = 1u << 29, kQuarter = 1u << 30, kSign = 1u << 31;
  const VecU angle = second & ~0xffu, nearest = angle + kEighth;
  const VecU rest = angle - (nearest & (kSign | kQuarter));
  const VecF x = __builtin_convertvector((VecI)rest, VecF) * 0x1.921fb6p-30f;
  const VecF z = x * x;
  const VecF sine = x + (x * z) * ((z * -0x1.9943ep-13f + 0x1.11073ap-7f) * z - 0x1.555546p-3f);
  const VecF cosine = (((z * 0x1.99eb9cp-16f - 0x1.6c0c34p-10f) * z + 0x1.55554ap-5f) * z - 0.5f) * z + 1.0f;
  const VecI odd_quarter = (VecI)(nearest << 1) < 0;
  const VecF c = odd_quarter ? sine : cosine, s = odd_quarter ? cosine : sine;
  *even = radius * (VecF)((VecU)c ^ ((nearest + kQuarter) & kSign));
  *odd = radius * (VecF)((VecU)s ^ (nearest & kSign));
}

// Normals of counters first, first + 1, ...: `count` of them, rounded up to a multiple of kNoiseStep.
void draw_noise(const NoiseKey& key, uint64_t first, int64_t count, float* out) {
  constexpr uint64_t kLow = 0xffffffff;
  const VecU multipliers = (VecU)alternate(0xD2511F53u, 0xCD9E8D57u);
  const VecL step = alternate(kLanes / 4, 0);
  VecL counter = alternate(first, 0);
  for (int i = 0; i < kLanes / 4; ++i) counter[2 * i] += i;
  for (int64_t i = 0; i < count; i += kNoiseStep) {
    VecU words[kWays];
    for (VecU& some : words) {
      some = (VecU)counter;
      counter += step;
    }
    for (const VecU& round : key.rounds)
      for (VecU& some : words) some = philox_round(some, multipliers, round);
    for (int way = 0; way < kWays; way += 2) {
      const VecL a = (VecL)words[way], b = (VecL)words[way + 1];
      VecF even, odd;
      box_muller((VecU)((a & kLow) | (b << 32)), (VecU)((a >> 32) | (b & ~kLow)), &even, &odd);
      const VecL low = ((VecL)even & kLow) | ((VecL)odd << 32);
      const VecL high = ((VecL)even >> 32) | ((VecL)odd & ~kLow);
      store(out + i + way * kLanes, (VecF)low);
      store(out + i + (way + 1) * kLanes, (VecF)high);
    }
  }
}

}  // namespace
}  // namespace vqcodec
