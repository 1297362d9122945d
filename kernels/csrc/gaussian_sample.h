// Samples of Gaussians and their divergence from a prior, forward and backward, on the CPU.
//
// The formulas are in vqcodec_kernels/gaussian_sample.py. Elements are worked on in blocks: part of one
// sample, or some whole samples where they are small. A block's noise is drawn first, then every
// element is gone through once, then the terms of the divergence are summed. Blocks depend on the
// size of a sample alone and sums have one fixed order, so that results do not depend on the number
// of threads, the instruction set, or the other samples of the batch.
#pragma once
#include <cstdint>

#include "nearest_codeword.h"

namespace vqcodec {

constexpr int kSampleBlock = 512;  // elements

// An argument: element (n, m) is at data[n * stride + m]. Null data: not given.
struct Rows {
  const void* data;
  int64_t stride;
};

struct GaussianRequest {
  Scalar type;  // of all arguments and results but kl and dkl
  int64_t count, size;  // N samples of M elements
  uint64_t seed;
  Rows mu, logvar, prior_mu, prior_logvar;
};

// What the blocks of a forward pass write: z (N, M) and, unless null, kl (N); or, where a sample has
// several blocks, twice the divergence of each of them, partial (N, blocks), and not kl.
struct GaussianSample {
  void* z;
  float* kl;
  double* partial;
};

// What the backward pass reads besides, null for zero, and writes: the gradients of mu, logvar and the
// prior's mean and log-variance, (N, M), null where there is no need for one.
struct GaussianGradient {
  Rows dz;
  const float* dkl;
  int64_t dkl_stride;
  void* out[4];
};

static inline int64_t bytes_of(Scalar type) { return type == Scalar::kFloat32 ? 4 : 2; }
// Blocks of a sample, and samples of a block where that is one. (static: see kernels.h.)
static inline int64_t sample_blocks(int64_t size) { return (size + kSampleBlock - 1) / kSampleBlock; }
static inline int64_t rows_of_block(int64_t size) {
  return size > kSampleBlock ? 1 : kSampleBlock / (size > 0 ? size : 1);
}

// Write what the forward and the backward pass give, in up to `threads` threads. kl may be null.
void gaussian_sample(const GaussianRequest& request, void* z, float* kl, int threads);
void gaussian_sample_backward(const GaussianRequest& request, const GaussianGradient& gradient, int threads);

}  // namespace vqcodec
