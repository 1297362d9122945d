// Exact nearest-codeword search on the CPU.
//
// A first pass in float32 over scores  s_k = h_k - x'.c'_k,  h_k = (||c'_k||^2 + bias_k) / 2, where
// x' and c' are x and c less the mean of the codebook, keeps for each vector the best block of
// eight codewords and the least score of all other blocks. A bound on the rounding of the scores
// (docs/kernels.md) gives a threshold that the score of the nearest codeword cannot exceed: if the
// other blocks lie above it, only the best block is looked at again, otherwise all are; what
// still lies below it is scored in float64, in the direct form sum (x - c)^2 + bias.
//
// On CPUs with 16-bit dot products (AVX-512 VNNI) a pass in integers comes before it, which decides
// most vectors at twice the speed. On CPUs with bfloat16 tiles (AMX) the pass over long vectors
// works on x' and c' split into two bfloat16 each, with three products of tiles, and a bound of
// its own.
//
// Layout: vectors are packed in panels [D][width], lanes along vectors; codewords in blocks
// [K/8][D][8], each value broadcast to the lanes.
#pragma once
#include <cstdint>

namespace vqcodec {

constexpr int kBlock = 8;  // codewords in a block
constexpr int kTile = 32;  // codewords, vectors and dimensions in a tile of bfloat16

// Length of the longest codeword in the pass in integers.
constexpr double kLongestCodeword = 16383.0;

enum class Scalar { kFloat32, kFloat16, kBfloat16 };

// Rows of one group: element (n, d) is at data[n * row_stride + d * dim_stride].
struct Vectors {
  const void* data;
  Scalar type;
  int64_t row_stride, dim_stride, dim;
  const int32_t* table;  // row of the bias for each vector of a call, or null for row 0
};

// One group's codebook. The caller owns all memory.
struct Codebook {
  const float* codewords;  // (K, D)
  const float* bias;       // (T, K) or null
  int64_t size, dim, tables;

  // Written by `pack`; codewords with a NaN, an infinity or a bias over kHuge have an h of +inf.
  float* mean;    // (D)
  double* norms;   // [blocks][8]: ||c'||^2
  float* packed;   // [blocks][D][8]
  float* h;        // [T][padded size]
  uint16_t* split; // [padded size / 16][D / 32][2][16][32] bfloat16, high then low parts, or null
  int32_t* pairs;  // [blocks][D / 2][8] pairs of int16, or null
  int32_t* h_int;  // [T][padded size], scaled by scale^2
  float scale;     // of `pairs`, zero if they are not to be used
  float pair_error;  // at least the norm of the rounding errors of a codeword's pairs
  float radius;    // at least ||c'_k|| of all codewords
  float split_low, split_error;  // the same of the low part and of what the split leaves
  bool in_range;  // whether float32 scores can be trusted; if not, all is done in float64

  int64_t blocks() const { return (size + kBlock - 1) / kBlock; }
  int64_t padded_size() const { return (size + kTile - 1) / kTile * kTile; }
};

// What packing learnt of some blocks.
struct Extent {
  double radius, split_low, split_error;  // greatest norms
  bool in_range;
};

struct Result {
  int64_t* index;   // (N)
  float* distance;  // (N) or null
  int64_t rescored;
};

// --- all groups ------------------------------------------------------------------------------

enum class Integer { kInt8, kInt16, kInt32, kInt64, kUint8, kUint16, kUint32, kUint64 };

// Rows of the biases, (G, N); data is null where there is but one.
struct TableRows {
  const void* data;
  Integer type;
  int64_t group_stride, stride;
};

// x (G, N, D) with element strides, codewords (G, K, D), bias (G, T, K) or null; results (G, N).
struct SearchRequest {
  const void* vectors;
  Scalar type;
  int64_t strides[3];
  int64_t groups, count, dim, size, tables;
  const float* codewords;
  const float* bias;
  TableRows rows;
  int64_t* index;
  float* distance;  // or null
};

// Returns how many vectors the first pass left undecided; std::invalid_argument for a row of
// biases that is not there.
int64_t search_groups(const SearchRequest& request, int threads);

}  // namespace vqcodec
