// Python bindings: shapes are checked here, rows are split over threads, the GIL is released.
// Arrays are C-contiguous and owned by the caller; outputs are written in place.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <nanobind/stl/optional.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <vector>

#include "kernels.h"
#include "torch_threads.h"

namespace nb = nanobind;

namespace {

template <typename T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <typename T, int N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

vqcodec::Scalar scalar_of(nb::dlpack::dtype type) {
  const auto is = [type](nb::dlpack::dtype_code code, int bits) {
    return type.code == static_cast<uint8_t>(code) && type.bits == bits && type.lanes == 1;
  };
  if (is(nb::dlpack::dtype_code::Float, 32)) return vqcodec::Scalar::kFloat32;
  if (is(nb::dlpack::dtype_code::Float, 16)) return vqcodec::Scalar::kFloat16;
  require(is(nb::dlpack::dtype_code::Bfloat, 16), "x must be float32, float16 or bfloat16");
  return vqcodec::Scalar::kBfloat16;
}

vqcodec::Integer integer_of(nb::dlpack::dtype type) {
  const bool is_signed = type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Int);
  require((is_signed || type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::UInt)) && type.lanes == 1,
          "bias_table must be integers");
  switch (type.bits) {
    case 8: return is_signed ? vqcodec::Integer::kInt8 : vqcodec::Integer::kUint8;
    case 16: return is_signed ? vqcodec::Integer::kInt16 : vqcodec::Integer::kUint16;
    case 32: return is_signed ? vqcodec::Integer::kInt32 : vqcodec::Integer::kUint32;
    default: require(type.bits == 64, "bias_table must be integers of 8 to 64 bits");
  }
  return is_signed ? vqcodec::Integer::kInt64 : vqcodec::Integer::kUint64;
}

int64_t nearest_codeword(nb::ndarray<nb::ro, nb::ndim<3>, nb::device::cpu> x, In<float, 3> codebook,
                         std::optional<In<float, 3>> bias,
                         std::optional<nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>> table,
                         Out<int64_t, 2> index, std::optional<Out<float, 2>> distance, int threads) {
  const int64_t groups = x.shape(0), n = x.shape(1), d = x.shape(2), k = codebook.shape(1);
  const auto matches = [](const auto& array, int64_t a, int64_t b) {
    return static_cast<int64_t>(array.shape(0)) == a && static_cast<int64_t>(array.shape(1)) == b;
  };
  require(matches(codebook, groups, k) && static_cast<int64_t>(codebook.shape(2)) == d, "codebook does not match x");
  require(k >= 1 && k < (1 << 30) && d >= 1 && d < (1 << 20), "K must be 1 to 2^30, D 1 to 2^20");
  require(!bias || (static_cast<int64_t>(bias->shape(0)) == groups && static_cast<int64_t>(bias->shape(2)) == k &&
                    bias->shape(1) >= 1 && bias->shape(1) < (1 << 30)), "bias does not match codebook");
  require(!table || matches(*table, groups, n), "table does not match x");
  require(matches(index, groups, n), "index does not match x");
  require(!distance || matches(*distance, groups, n), "distance does not match x");
  vqcodec::SearchRequest request{};
  request.vectors = x.data();
  request.type = scalar_of(x.dtype());
  for (int i = 0; i < 3; ++i) request.strides[i] = x.stride(i);
  request.groups = groups;
  request.count = n;
  request.dim = d;
  request.size = k;
  request.tables = bias ? bias->shape(1) : 1;
  request.codewords = codebook.data();
  request.bias = bias ? bias->data() : nullptr;
  if (table) request.rows = {table->data(), integer_of(table->dtype()), table->stride(0), table->stride(1)};
  request.index = index.data();
  request.distance = distance ? distance->data() : nullptr;
  nb::gil_scoped_release release;
  return vqcodec::search_groups(request, std::max(1, threads));
}

using InRows = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;
using OutRows = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Whether two matrices are of one shape and type; one that is not given always is.
template <typename Array>
bool alike(const InRows& a, const std::optional<Array>& b) {
  return !b || (a.shape(0) == b->shape(0) && a.shape(1) == b->shape(1) && a.dtype() == b->dtype());
}

vqcodec::Rows rows_of(const std::optional<InRows>& matrix) {
  if (!matrix) return {nullptr, 0};
  require(matrix->size() == 0 || matrix->shape(1) == 1 || matrix->stride(1) == 1,
          "elements of a row must lie beside each other");
  return {matrix->data(), matrix->stride(0)};
}

vqcodec::GaussianRequest gaussian_request(const InRows& mu, const InRows& logvar,
                                          const std::optional<InRows>& prior_mu,
                                          const std::optional<InRows>& prior_logvar, int64_t seed) {
  require(alike<InRows>(mu, logvar) && alike(mu, prior_mu) && alike(mu, prior_logvar), "arguments do not match mu");
  vqcodec::GaussianRequest request{};
  request.type = scalar_of(mu.dtype());
  request.count = mu.shape(0);
  request.size = mu.shape(1);
  request.seed = static_cast<uint64_t>(seed);
  request.mu = rows_of(mu);
  request.logvar = rows_of(logvar);
  request.prior_mu = rows_of(prior_mu);
  request.prior_logvar = rows_of(prior_logvar);
  return request;
}

void gaussian_sample(InRows mu, InRows logvar, std::optional<InRows> prior_mu,
                     std::optional<InRows> prior_logvar, int64_t seed, OutRows z,
                     std::optional<Out<float, 1>> kl, int threads) {
  const auto request = gaussian_request(mu, logvar, prior_mu, prior_logvar, seed);
  require(alike<OutRows>(mu, z), "z does not match mu");
  require(!kl || kl->shape(0) == mu.shape(0), "kl does not match mu");
  void* out = z.data();
  float* divergence = kl ? kl->data() : nullptr;
  nb::gil_scoped_release release;
  vqcodec::gaussian_sample(request, out, divergence, std::max(1, threads));
}

void gaussian_sample_backward(std::optional<InRows> dz,
                              std::optional<nb::ndarray<const float, nb::ndim<1>, nb::device::cpu>> dkl,
                              InRows mu, InRows logvar, std::optional<InRows> prior_mu,
                              std::optional<InRows> prior_logvar, int64_t seed,
                              std::optional<OutRows> dmu, std::optional<OutRows> dlogvar,
                              std::optional<OutRows> dprior_mu, std::optional<OutRows> dprior_logvar,
                              int threads) {
  const auto request = gaussian_request(mu, logvar, prior_mu, prior_logvar, seed);
  require(alike(mu, dz), "dz does not match mu");
  require(!dkl || dkl->shape(0) == mu.shape(0), "dkl does not match mu");
  vqcodec::GaussianGradient gradient{};
  gradient.dz = rows_of(dz);
  gradient.dkl = dkl ? dkl->data() : nullptr;
  gradient.dkl_stride = dkl ? dkl->stride(0) : 0;
  const std::optional<OutRows>* results[4] = {&dmu, &dlogvar, &dprior_mu, &dprior_logvar};
  for (int i = 0; i < 4; ++i) {
    require(alike(mu, *results[i]), "a gradient does not match mu");
    gradient.out[i] = *results[i] ? (*results[i])->data() : nullptr;
  }
  nb::gil_scoped_release release;
  vqcodec::gaussian_sample_backward(request, gradient, std::max(1, threads));
}

std::vector<int8_t> pack_groups(const int8_t* weight, int64_t groups, int outputs, int inputs) {
  const size_t size = static_cast<size_t>(vqcodec::padded_outputs(outputs)) * vqcodec::padded_inputs(inputs);
  std::vector<int8_t> packed(groups * size);
  for (int64_t g = 0; g < groups; ++g)
    vqcodec::pack_weight(weight + g * outputs * inputs, outputs, inputs, packed.data() + g * size);
  return packed;
}

// Rows of values, one a group, each padded to whole blocks of outputs.
std::vector<int32_t> pad_groups(const int32_t* values, int64_t groups, int outputs, int32_t padding) {
  const int64_t size = vqcodec::padded_outputs(outputs);
  std::vector<int32_t> padded(groups * size, padding);
  for (int64_t g = 0; g < groups; ++g)
    std::copy_n(values + g * outputs, outputs, padded.data() + g * size);
  return padded;
}

// body(first, count) for rows [begin, end), a few at a time: those of all groups stay in the cache.
template <typename Body>
void for_each_slab(int64_t begin, int64_t end, Body body) {
  constexpr int64_t kSlab = 64;
  for (int64_t first = begin; first < end; first += kSlab) body(first, std::min(kSlab, end - first));
}

void check_linear(const In<uint8_t, 3>& x, const In<int8_t, 3>& weight, const In<int32_t, 2>& bias) {
  require(weight.shape(0) == x.shape(1) && weight.shape(2) == x.shape(2), "weight does not match x");
  require(bias.shape(0) == weight.shape(0) && bias.shape(1) == weight.shape(1), "bias does not match weight");
  require(x.shape(2) >= 1 && x.shape(2) <= vqcodec::kMaxInputs, "between 1 and 4096 inputs are supported");
  require(weight.shape(1) >= 1 && weight.shape(1) <= (1 << 20), "number of outputs out of range");
}

void integer_linear(In<uint8_t, 3> x, In<int8_t, 3> weight, In<int32_t, 2> bias,
                    In<int32_t, 2> multiplier, int shift, Out<uint8_t, 3> y, int threads) {
  check_linear(x, weight, bias);
  require(multiplier.shape(0) == bias.shape(0) && multiplier.shape(1) == bias.shape(1), "multiplier does not match bias");
  require(shift >= 1 && shift <= 62, "shift must be 1..62");
  require(y.shape(0) == x.shape(0) && y.shape(1) == x.shape(1) && y.shape(2) == weight.shape(1), "y does not match");
  const int64_t n = x.shape(0), groups = x.shape(1);
  const int inputs = static_cast<int>(x.shape(2)), outputs = static_cast<int>(weight.shape(1));
  const vqcodec::KernelTable* kernels = vqcodec::active_kernels();
  const uint8_t* xs = x.data();
  const int8_t* ws = weight.data();
  const int32_t* bs = bias.data();
  const int32_t* ms = multiplier.data();
  uint8_t* ys = y.data();
  nb::gil_scoped_release release;
  const auto packed = pack_groups(ws, groups, outputs, inputs);
  const int64_t padded = vqcodec::padded_outputs(outputs);
  const auto biases = pad_groups(bs, groups, outputs, 0), multipliers = pad_groups(ms, groups, outputs, 0);
  const int64_t size = packed.size() / std::max<int64_t>(1, groups);
  vqcodec::parallel_for_in_torch(n, 1 + (1 << 20) / (1 + groups * size), threads, [&](int64_t begin, int64_t end) {
    for_each_slab(begin, end, [&](int64_t first, int64_t rows) {
      for (int64_t g = 0; g < groups; ++g)
        kernels->layers.linear(xs + (first * groups + g) * inputs, groups * inputs, rows, inputs,
                               packed.data() + g * size, outputs, biases.data() + g * padded,
                               vqcodec::Requantise{multipliers.data() + g * padded, shift},
                               ys + (first * groups + g) * outputs, groups * outputs);
    });
  });
}

void integer_argmax(In<uint8_t, 3> x, In<int8_t, 3> weight, In<int32_t, 2> bias,
                    Out<uint8_t, 2> y, int threads) {
  check_linear(x, weight, bias);
  require(weight.shape(1) <= 256, "at most 256 outputs fit the result");
  require(y.shape(0) == x.shape(0) && y.shape(1) == x.shape(1), "y does not match");
  const int64_t n = x.shape(0), groups = x.shape(1);
  const int inputs = static_cast<int>(x.shape(2)), outputs = static_cast<int>(weight.shape(1));
  const vqcodec::KernelTable* kernels = vqcodec::active_kernels();
  const uint8_t* xs = x.data();
  const int8_t* ws = weight.data();
  const int32_t* bs = bias.data();
  uint8_t* ys = y.data();
  nb::gil_scoped_release release;
  const auto packed = pack_groups(ws, groups, outputs, inputs);
  const int64_t padded = vqcodec::padded_outputs(outputs);
  const auto biases = pad_groups(bs, groups, outputs, INT32_MIN);
  const int64_t size = packed.size() / std::max<int64_t>(1, groups);
  vqcodec::parallel_for_in_torch(n, 1 + (1 << 20) / (1 + groups * size), threads, [&](int64_t begin, int64_t end) {
    for_each_slab(begin, end, [&](int64_t first, int64_t rows) {
      for (int64_t g = 0; g < groups; ++g)
        kernels->layers.argmax(xs + (first * groups + g) * inputs, groups * inputs, rows, inputs,
                               packed.data() + g * size, outputs, biases.data() + g * padded,
                               ys + first * groups + g, groups);
    });
  });
}

void integer_window(In<uint8_t, 3> map, In<int32_t, 2> positions, int tile, In<int8_t, 3> taps,
                    In<int32_t, 1> bias, In<int32_t, 1> multiplier, int shift,
                    Out<uint8_t, 2> y, int threads) {
  const int64_t height = map.shape(0), width = map.shape(1), channels = map.shape(2);
  const int64_t n = positions.shape(0);
  require(positions.shape(1) == 2, "positions must be (n, 2)");
  require(taps.shape(0) == taps.shape(1) && taps.shape(0) % 2 == 1, "taps must be (2r+1, 2r+1, channels)");
  require(static_cast<int64_t>(taps.shape(2)) == channels && static_cast<int64_t>(bias.shape(0)) == channels &&
          static_cast<int64_t>(multiplier.shape(0)) == channels, "taps, bias or multiplier do not match map");
  require(channels >= 1 && channels <= vqcodec::kMaxChannels, "between 1 and 1024 channels are supported");
  require(static_cast<int64_t>(y.shape(0)) == n && static_cast<int64_t>(y.shape(1)) == channels, "y does not match");
  require(shift >= 1 && shift <= 62 && tile >= 1, "shift must be 1..62, tile positive");
  const int32_t* at = positions.data();
  for (int64_t i = 0; i < n; ++i)
    require(at[2 * i] >= 0 && at[2 * i] < height && at[2 * i + 1] >= 0 && at[2 * i + 1] < width,
            "position outside the map");
  const vqcodec::KernelTable* kernels = vqcodec::active_kernels();
  const uint8_t* m = map.data();
  const int8_t* t = taps.data();
  const int32_t* b = bias.data();
  const vqcodec::Requantise requantise{multiplier.data(), shift};
  const int radius = static_cast<int>(taps.shape(0) / 2);
  uint8_t* ys = y.data();
  nb::gil_scoped_release release;
  vqcodec::parallel_for_in_torch(n, 1 + (1 << 18) / (channels * (2 * radius + 1) * (2 * radius + 1)), threads,
               [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int row = at[2 * i], column = at[2 * i + 1];
      const int y0 = row / tile * tile, x0 = column / tile * tile;
      const int y1 = static_cast<int>(std::min<int64_t>(height, y0 + int64_t{tile}));
      const int x1 = static_cast<int>(std::min<int64_t>(width, x0 + int64_t{tile}));
      kernels->layers.window(m, static_cast<int>(width), static_cast<int>(channels), row, column, y0, y1,
                      x0, x1, radius, t, b, requantise, ys + i * channels);
    }
  });
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native kernels of vqcodec_kernels; use the functions of that package instead.";
  m.def("isa", [] { return nb::str(vqcodec::active_isa()); });
  m.def("nearest_codeword", &nearest_codeword, nb::arg("x").noconvert(), nb::arg("codebook").noconvert(),
        nb::arg("bias").none(), nb::arg("table").none(), nb::arg("index").noconvert(),
        nb::arg("distance").none(), nb::arg("threads"));
  m.def("gaussian_sample", &gaussian_sample, nb::arg("mu").noconvert(), nb::arg("logvar").noconvert(),
        nb::arg("prior_mu").none(), nb::arg("prior_logvar").none(), nb::arg("seed"),
        nb::arg("z").noconvert(), nb::arg("kl").none(), nb::arg("threads"));
  m.def("gaussian_sample_backward", &gaussian_sample_backward, nb::arg("dz").none(), nb::arg("dkl").none(),
        nb::arg("mu").noconvert(), nb::arg("logvar").noconvert(), nb::arg("prior_mu").none(),
        nb::arg("prior_logvar").none(), nb::arg("seed"), nb::arg("dmu").none(), nb::arg("dlogvar").none(),
        nb::arg("dprior_mu").none(), nb::arg("dprior_logvar").none(), nb::arg("threads"));
  m.def("integer_linear", &integer_linear, nb::arg("x").noconvert(), nb::arg("weight").noconvert(),
        nb::arg("bias").noconvert(), nb::arg("multiplier").noconvert(), nb::arg("shift"),
        nb::arg("y").noconvert(), nb::arg("threads"));
  m.def("integer_argmax", &integer_argmax, nb::arg("x").noconvert(), nb::arg("weight").noconvert(),
        nb::arg("bias").noconvert(), nb::arg("y").noconvert(), nb::arg("threads"));
  m.def("integer_window", &integer_window, nb::arg("map").noconvert(), nb::arg("positions").noconvert(),
        nb::arg("tile"), nb::arg("taps").noconvert(), nb::arg("bias").noconvert(),
        nb::arg("multiplier").noconvert(), nb::arg("shift"), nb::arg("y").noconvert(),
        nb::arg("threads"));
}
