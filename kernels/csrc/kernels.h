// Table of the native kernels. Each instruction set's translation unit fills one;
// isa.cpp picks the one to run. Every table gives equal results.
#pragma once
#include <cstdint>

#include "gaussian_sample.h"
#include "nearest_codeword.h"

namespace vqcodec {

// Exact requantisation of an accumulator: clamp((acc * multiplier + 2^(shift-1)) >> shift, 0, 255).
struct Requantise {
  const int32_t* multiplier;  // one an output
  int shift;                  // 1..62
};

// Rows that the layers work on together.
constexpr int kLayerRows = 8;

// Biases and multipliers are padded to a multiple of 16 outputs (padded_outputs); what is added to
// weights is zero, so a bias of INT32_MIN keeps such an output from being an argmax.
struct LayerKernels {
  // y[n][o] = requantise(bias[o] + sum_i x[n][i] * weight[o][i]), 0 <= x <= 255, |weight| <= 127.
  // Rows of x and y are x_stride and y_stride bytes apart; packed: weight packed by pack_weight.
  void (*linear)(const uint8_t* x, int64_t x_stride, int64_t n, int inputs, const int8_t* packed,
                 int outputs, const int32_t* bias, const Requantise& requantise, uint8_t* y,
                 int64_t y_stride);

  // y[n] = argmax_o (bias[o] + sum_i x[n][i] * weight[o][i]), lowest o on ties.
  void (*argmax)(const uint8_t* x, int64_t x_stride, int64_t n, int inputs, const int8_t* packed,
                 int outputs, const int32_t* bias, uint8_t* y, int64_t y_stride);

  // Depthwise window sum: acc[c] = bias[c] + sum_taps map[y+dy][x+dx][c] * taps[tap][c], requantised.
  // Positions outside [y0, y1) x [x0, x1) read as zero.
  void (*window)(const uint8_t* map, int width, int channels, int y, int x, int y0, int y1, int x0,
                 int x1, int radius, const int8_t* taps, const int32_t* bias,
                 const Requantise& requantise, uint8_t* out);
};

// The steps of a search; nearest_codeword.h has the layouts.
struct SearchKernels {
  // Writes the mean of dimensions [first, last).
  void (*find_mean)(const Codebook& book, int64_t first, int64_t last);
  // Packs blocks [first, last); the mean must be there.
  Extent (*pack_blocks)(const Codebook& book, int64_t first, int64_t last);
  // Values of Codebook::pairs, 0 if this instruction set does not use them for such vectors.
  int64_t (*pairs_size)(int64_t dim, int64_t blocks);
  // Writes pairs of blocks [first, last) by the scale; the longest error, or -1 if they are no use.
  double (*quantise_blocks)(const Codebook& book, int64_t first, int64_t last);
  // Values of Codebook::split, 0 if this instruction set does not use it for such vectors.
  int64_t (*split_size)(int64_t dim, int64_t padded_size);
  // Bytes of scratch memory, aligned to 64, for one call of `search`.
  int64_t (*workspace_bytes)(int64_t dim, int64_t tables);
  // Searches for vectors [begin, end) of a group.
  void (*search)(const Vectors& x, const Codebook& book, int64_t begin, int64_t end, char* workspace,
                 Result* result);
};

// Blocks [begin, end) of a sample and of its gradients.
struct GaussianKernels {
  void (*sample)(const GaussianRequest& request, const GaussianSample& out, int64_t begin, int64_t end);
  void (*differentiate)(const GaussianRequest& request, const GaussianGradient& gradient, int64_t begin,
                        int64_t end);
};

struct KernelTable {
  LayerKernels layers;
  SearchKernels search;
  GaussianKernels gaussian;
};

const KernelTable* portable_kernels();
#ifdef VQCODEC_X86
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
const KernelTable* avx512_bf16_kernels();
const KernelTable* amx_kernels();
// Whether the tiles give a known product; only where the CPU and the system have them.
bool amx_multiplies();
#endif

// The table for this CPU, or the one that VQCODEC_ISA names; throws std::runtime_error if
// that instruction set is unknown or the CPU does not have it.
const KernelTable* active_kernels();
const char* active_isa();

// Weights (outputs, inputs) in blocks of 16 outputs x 4 inputs: [outputs/16][inputs/4][16][4],
// both padded with zeros. All kernels read this one layout.
// (static: an inline function shared by units with different instruction sets may be emitted with
// the wrong one.)
static inline int padded_outputs(int outputs) { return (outputs + 15) / 16 * 16; }
static inline int padded_inputs(int inputs) { return (inputs + 3) / 4 * 4; }
constexpr int kMaxInputs = 4096;
constexpr int kMaxChannels = 1024;
void pack_weight(const int8_t* weight, int outputs, int inputs, int8_t* packed);

}  // namespace vqcodec
