// Blocks of Gaussian samples, included by one translation unit for each instruction set, which has
// defined `multiply_even`, `reverse_fours`, `square_root`, `minimum` and `maximum`.
//
// There are no fused products and no sums across lanes but in one fixed order, of sixteen lanes
// whatever the width of the vectors: equal bits on every instruction set.
#include "gaussian_sample.h"
#include "philox_impl.h"

#include "half_impl.h"

namespace vqcodec {
namespace {

constexpr int kSumLanes = 16;

// e^x as 2^n * e^r: where n is 0, as `near` says, r is x, and the parts give e^x - 1 and e^x - 1 - x
// without cancellation. Where e^x is below 2^-125.5, it is 0.
struct Exponential {
  VecF value;
  VecI near;
  VecF less_one;   // e^r - 1
  VecF curvature;  // e^r - 1 - r, never negative
};

inline Exponential exponential(VecF argument) {
  constexpr float kMagic = 0x1.8p23f;  // a sum with it is a whole number, in the low bits
  constexpr uint32_t kMagicBits = 0x4b400000;
  // Outside of these e^x is 0 or infinite; the order of the operands lets NaN through.
  const VecF x = maximum(splat(-87.5f), minimum(splat(89.0f), argument));
  const VecF sum = x * 0x1.715476p+0f + kMagic;
  const VecF whole = sum - kMagic;
  // ln 2 in two parts, the products of the first exact.
  const VecF r = (x - whole * 0x1.63p-1f) + whole * 0x1.bd0106p-13f;
  // e^r - 1 - r = r^2 p(r): p is within 2^-28.2 of it, relative to e^r.
  const VecF square = r * r;
  const VecF p = (square * 0x1.6a2352p-10f + (r * 0x1.123a6cp-7f + 0x1.5558f4p-5f)) * square +
                 (r * 0x1.55549p-3f + 0x1.fffffcp-2f);
  const VecF curvature = square * p;
  const VecF less_one = r + curvature;
  // n is -126 to 128: 2^(n - 1) is a number, or 0 for the least.
  const VecF scale = (VecF)(((VecU)sum - (kMagicBits - 126)) << 23);
  return {(less_one + 1.0f) * scale * 2.0f, sum == kMagic, less_one, curvature};
}

// e^(2 x) - 1 and, given 2 x, e^(2 x) - 1 - 2 x, for e = e^x.
inline VecF square_less_one(const Exponential& e) {
  return e.near ? e.less_one * (e.less_one + 2.0f) : e.value * e.value - 1.0f;
}
inline VecF square_curvature(const Exponential& e, VecF twice) {
  return e.near ? e.less_one * e.less_one + 2.0f * e.curvature : (e.value * e.value - 1.0f) - twice;
}

// The same of e^x itself.
inline VecF value_less_one(const Exponential& e) { return e.near ? e.less_one : e.value - 1.0f; }
inline VecF value_curvature(const Exponential& e, VecF x) {
  return e.near ? e.curvature : (e.value - 1.0f) - x;
}

// Part of a sample, or some whole samples, of at most kSampleBlock elements.
struct Block {
  int64_t row, rows, first, length;
  int64_t index;  // of the partial sum

  Block(const GaussianRequest& request, int64_t block) : index(block) {
    const int64_t blocks = sample_blocks(request.size);
    if (blocks > 1) {
      row = block / blocks;
      rows = 1;
      first = block % blocks * kSampleBlock;
      length = request.size - first < kSampleBlock ? request.size - first : kSampleBlock;
    } else {
      const int64_t most = rows_of_block(request.size);
      row = block * most;
      rows = request.count - row < most ? request.count - row : most;
      first = 0;
      length = request.size;
    }
  }
  int64_t size() const { return rows * length; }
  // Whether its elements can be read and written in place.
  bool in_place(Scalar type) const { return type == Scalar::kFloat32 && size() % kSumLanes == 0; }
};

struct alignas(64) Staged {
  float values[kSampleBlock + kNoiseStep] = {};
};

// A block's elements of an argument, as floats; null if it is not given.
inline const float* fetch(const Rows& from, Scalar type, const Block& block, Staged* staged) {
  if (!from.data) return nullptr;
  const int64_t bytes = bytes_of(type);
  const char* at = static_cast<const char*>(from.data) + (block.row * from.stride + block.first) * bytes;
  if (block.in_place(type) && (block.rows == 1 || from.stride == block.length))
    return reinterpret_cast<const float*>(at);
  for (int64_t r = 0; r < block.rows; ++r)
    widen(type, at + r * from.stride * bytes, block.length, staged->values + r * block.length);
  return staged->values;
}

// Where a block's results are to be written, and what brings them there if it was not in place.
class Target {
 public:
  Target(void* data, const GaussianRequest& request, const Block& block, Staged* staged)
      : type_(request.type), count_(block.size()) {
    if (!data) return;
    at_ = static_cast<char*>(data) + (block.row * request.size + block.first) * bytes_of(type_);
    values = block.in_place(type_) ? reinterpret_cast<float*>(at_) : staged->values;
    staged_ = !block.in_place(type_);
  }
  void finish() const {
    if (staged_) narrow(type_, values, count_, at_);
  }
  float* values = nullptr;  // null: not wanted

 private:
  Scalar type_;
  int64_t count_;
  char* at_ = nullptr;
  bool staged_ = false;
};

// The noise of a block's elements.
inline const float* noise_of(const GaussianRequest& request, const NoiseKey& key, const Block& block, Staged* staged) {
  const uint64_t index = static_cast<uint64_t>(block.row) * request.size + block.first;
  draw_noise(key, index / 4, index % 4 + block.size(), staged->values);
  return staged->values + index % 4;
}

// In sixteen lanes, whose sums are then folded.
float sum_of(const float* terms, int64_t count) {
  constexpr int kParts = kSumLanes / kLanes;
  VecF sums[kParts] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes)
    for (int part = 0; part < kParts; ++part) sums[part] += load(terms + i + part * kLanes);
  float lanes[kSumLanes] = {};
  std::memcpy(lanes, terms + i, 4 * (count - i));
  for (int part = 0; part < kParts; ++part) store(lanes + part * kLanes, sums[part] + load(lanes + part * kLanes));
  for (int width = kSumLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

// Arguments of a block's elements; null where they are not given.
struct Elements {
  const float *mu, *logvar, *prior_mu, *prior_logvar, *noise;

  VecF distance(int64_t i) const {
    const VecF m = load(mu + i);
    return prior_mu ? m - load(prior_mu + i) : m;
  }
};

// terms: twice the divergence of each element, or null.
void sample_elements(const Elements& x, int64_t count, float* z, float* terms) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const VecF logvar = load(x.logvar + i);
    const Exponential sigma = exponential(0.5f * logvar);
    store(z + i, load(x.mu + i) + sigma.value * load(x.noise + i));
    if (!terms) continue;
    const VecF distance = x.distance(i);
    if (x.prior_logvar) {
      const VecF scale = load(x.prior_logvar + i), ratio = logvar - scale;
      store(terms + i, value_curvature(exponential(ratio), ratio) +
                           (distance * distance) * exponential(-scale).value);
    } else {
      store(terms + i, square_curvature(sigma, logvar) + distance * distance);
    }
  }
}

void sample(const GaussianRequest& request, const GaussianSample& out, int64_t begin, int64_t end) {
  const NoiseKey key(request.seed);
  Staged noise, terms, staged[5];
  for (int64_t b = begin; b < end; ++b) {
    const Block block(request, b);
    const Elements x{fetch(request.mu, request.type, block, &staged[0]),
                     fetch(request.logvar, request.type, block, &staged[1]),
                     out.kl ? fetch(request.prior_mu, request.type, block, &staged[2]) : nullptr,
                     out.kl ? fetch(request.prior_logvar, request.type, block, &staged[3]) : nullptr,
                     noise_of(request, key, block, &noise)};
    const Target z(out.z, request, block, &staged[4]);
    sample_elements(x, block.size(), z.values, out.kl ? terms.values : nullptr);
    z.finish();
    if (!out.kl) continue;
    for (int64_t r = 0; r < block.rows; ++r) {
      const double sum = sum_of(terms.values + r * block.length, block.length);
      if (out.partial)
        out.partial[block.index] = sum;
      else
        out.kl[block.row + r] = static_cast<float>(0.5 * sum);
    }
  }
}

// dz, dkl: gradients of each element's z and divergence, null for zero. out: as in GaussianGradient.
void differentiate_elements(const Elements& x, int64_t count, const float* dz, const float* dkl,
                            float* const* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const VecF logvar = load(x.logvar + i);
    VecF dmu{}, dlogvar{};
    Exponential sigma;
    if (x.noise || !x.prior_logvar) sigma = exponential(0.5f * logvar);
    if (dz) {
      dmu = load(dz + i);
      if (x.noise) dlogvar = (0.5f * dmu) * (sigma.value * load(x.noise + i));
    }
    if (dkl) {
      const VecF weight = load(dkl + i), distance = x.distance(i);
      VecF slope = distance, excess;
      if (x.prior_logvar) {
        const VecF scale = load(x.prior_logvar + i);
        slope *= exponential(-scale).value;
        excess = value_less_one(exponential(logvar - scale));
      } else {
        excess = square_less_one(sigma);
      }
      const VecF pull = weight * slope, half = 0.5f * weight;
      dmu += pull;
      dlogvar += half * excess;
      if (out[2]) store(out[2] + i, -pull);
      if (out[3]) store(out[3] + i, -half * (excess + distance * slope));
    }
    if (out[0]) store(out[0] + i, dmu);
    if (out[1]) store(out[1] + i, dlogvar);
  }
}

void differentiate(const GaussianRequest& request, const GaussianGradient& gradient, int64_t begin, int64_t end) {
  const NoiseKey key(request.seed);
  Staged noise, weight, staged[9];
  const bool noisy = gradient.dz.data && gradient.out[1];
  for (int64_t b = begin; b < end; ++b) {
    const Block block(request, b);
    const Elements x{fetch(request.mu, request.type, block, &staged[0]),
                     fetch(request.logvar, request.type, block, &staged[1]),
                     fetch(request.prior_mu, request.type, block, &staged[2]),
                     fetch(request.prior_logvar, request.type, block, &staged[3]),
                     noisy ? noise_of(request, key, block, &noise) : nullptr};
    const float* dz = fetch(gradient.dz, request.type, block, &staged[4]);
    if (gradient.dkl)
      for (int64_t r = 0; r < block.rows; ++r)
        for (int64_t i = 0; i < block.length; ++i)
          weight.values[r * block.length + i] = gradient.dkl[(block.row + r) * gradient.dkl_stride];
    const Target targets[4] = {{gradient.out[0], request, block, &staged[5]},
                               {gradient.out[1], request, block, &staged[6]},
                               {gradient.out[2], request, block, &staged[7]},
                               {gradient.out[3], request, block, &staged[8]}};
    float* const out[4] = {targets[0].values, targets[1].values, targets[2].values, targets[3].values};
    differentiate_elements(x, block.size(), dz, gradient.dkl ? weight.values : nullptr, out);
    for (const Target& target : targets) target.finish();
  }
}

const GaussianKernels kGaussianKernels = {sample, differentiate};

}  // namespace
}  // namespace vqcodec
