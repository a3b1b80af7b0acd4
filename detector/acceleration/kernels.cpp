// Two kernels for CPUs with AVX2 or AVX-512; kernels.py compiles and calls them. Tensors are N x H x W x C.
//
// Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: F(4x4, 3x3) takes 36 products for
// sixteen outputs where a 3x3 convolution needs 144, F(2x2, 3x3) takes 16 for four where it needs 36. Float32 affords
// the larger tiles; in bfloat16 they would lose several times as much precision as the small ones.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

// The vector's width, and the sums that fit in the registers beside weights and an input.
#ifdef __AVX512F__
constexpr int64_t kLanes = 16, kSums = 24;
#else
constexpr int64_t kLanes = 8, kSums = 12;
#endif
using Vector __attribute__((vector_size(4 * kLanes))) = float;
using Integers __attribute__((vector_size(4 * kLanes))) = int32_t;

static inline Vector load(const float* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

static inline void store(float* to, Vector value) { std::memcpy(to, &value, sizeof value); }

// Winograd's transforms in one dimension, for the points 0, +-1/sqrt 2, +-sqrt 2 and infinity, which lose less
// precision than whole numbers. Most of the factors are powers of two.
struct Float32 {
  using Stored = float;
  static constexpr int64_t kTile = 4, kEdge = 6;

  static inline void transform(const Vector* d, Vector* t) {
    const Vector near_even = d[4] - 2.f * d[2], near_odd = kNear * (d[3] - 2.f * d[1]);
    const Vector far_even = d[4] - .5f * d[2], far_odd = kFar * (d[3] - .5f * d[1]);
    t[0] = d[0] + d[4] - 2.5f * d[2];
    t[1] = near_even + near_odd;
    t[2] = near_even - near_odd;
    t[3] = far_even + far_odd;
    t[4] = far_even - far_odd;
    t[5] = d[1] + d[5] - 2.5f * d[3];
  }

  static inline void inverse(const Vector* m, Vector* y) {
    const Vector near_even = m[1] + m[2], near_odd = kNear * (m[1] - m[2]);
    const Vector far_even = m[3] + m[4], far_odd = kFar * (m[3] - m[4]);
    y[0] = m[0] + near_even + far_even;
    y[1] = near_odd + far_odd;
    y[2] = .5f * near_even + 2.f * far_even;
    y[3] = .5f * near_odd + 2.f * far_odd + m[5];
  }

  // out[r][n] = sum over k of a[r][k] * w[k][n], for R rows and NB vectors of n; the sums stay in registers.
  template <int R, int NB>
  static inline void multiply(const float* a, int64_t channels, const float* w, float* out) {
    Vector sum[R][NB];
    for (int r = 0; r < R; r++)
      for (int b = 0; b < NB; b++) sum[r][b] = Vector{};
    for (int64_t k = 0; k < channels; k++) {
      Vector weights[NB];
      for (int b = 0; b < NB; b++) weights[b] = load(w + (k * NB + b) * kLanes);
      for (int r = 0; r < R; r++) {
        const float input = a[r * channels + k];
        for (int b = 0; b < NB; b++) sum[r][b] += input * weights[b];
      }
    }
    for (int r = 0; r < R; r++)
      for (int b = 0; b < NB; b++) store(out + (r * NB + b) * kLanes, sum[r][b]);
  }

 private:
  static constexpr float kNear = 0.70710678f, kFar = 1.41421356f;
};

#ifdef __AVX512BF16__
using bf16 = uint16_t;

static inline Vector load(const bf16* from) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}

static inline void store(bf16* to, Vector value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)value));
}

// The points 0, +-1 and infinity: the transforms only add and subtract.
struct Bfloat16 {
  using Stored = bf16;
  static constexpr int64_t kTile = 2, kEdge = 4;

  static inline void transform(const Vector* d, Vector* t) {
    t[0] = d[2] - d[0], t[1] = d[2] + d[1], t[2] = d[2] - d[1], t[3] = d[3] - d[1];
  }

  static inline void inverse(const Vector* m, Vector* y) {
    y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] + m[3];
  }

  // As above; pairs of k are adjacent in w.
  template <int R, int NB>
  static inline void multiply(const bf16* a, int64_t channels, const bf16* w, float* out) {
    __m512 sum[R][NB];
    for (int r = 0; r < R; r++)
      for (int b = 0; b < NB; b++) sum[r][b] = _mm512_setzero_ps();
    for (int64_t k = 0; k < channels; k += 2) {
      __m512i weights[NB];
      for (int b = 0; b < NB; b++) weights[b] = _mm512_loadu_si512(w + (k * NB + 2 * b) * kLanes);
      for (int r = 0; r < R; r++) {
        const __m512i pair = _mm512_set1_epi32(*reinterpret_cast<const int*>(a + r * channels + k));
        for (int b = 0; b < NB; b++) sum[r][b] = _mm512_dpbf16_ps(sum[r][b], (__m512bh)pair, (__m512bh)weights[b]);
      }
    }
    for (int r = 0; r < R; r++)
      for (int b = 0; b < NB; b++) store(out + (r * NB + b) * kLanes, (Vector)sum[r][b]);
  }
};
#endif

template <class Scheme, int R, int NB, class Stored = typename Scheme::Stored>
static void multiply_rows(const Stored* a, int64_t rows, int64_t channels, const Stored* w, float* out) {
  int64_t r = 0;
  for (; r + R <= rows; r += R)
    Scheme::template multiply<R, NB>(a + r * channels, channels, w, out + r * NB * kLanes);
  if constexpr (R > 1)
    if (r < rows)
      multiply_rows<Scheme, R / 2, NB>(a + r * channels, rows - r, channels, w, out + r * NB * kLanes);
}

// B^T d B of the pixels from (top, left), zero outside the picture: kEdge^2 values per channel, `stride` apart.
// `height` and `width` are those of the output; each pixel of x counts for 2^doubled rows and columns.
template <class Scheme, bool Inside, class Stored = typename Scheme::Stored>
static void transform_input(const Stored* x, int64_t height, int64_t width, int64_t channels, int64_t top,
                            int64_t left, int doubled, Stored* v, int64_t stride) {
  constexpr int64_t edge = Scheme::kEdge;
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector t[edge][edge];
    for (int j = 0; j < edge; j++) {
      Vector d[edge];
      for (int i = 0; i < edge; i++) {
        const int64_t row = top + i, column = left + j;
        const int64_t at = ((row >> doubled) * (width >> doubled) + (column >> doubled)) * channels + c;
        const bool inside = Inside || (row >= 0 && row < height && column >= 0 && column < width);
        d[i] = inside ? load(x + at) : Vector{};
      }
      Scheme::transform(d, t[j]);
    }
    for (int i = 0; i < edge; i++) {
      Vector row[edge], s[edge];
      for (int j = 0; j < edge; j++) row[j] = t[j][i];
      Scheme::transform(row, s);
      for (int j = 0; j < edge; j++) store(v + (edge * i + j) * stride + c, s[j]);
    }
  }
}

// A^T m A plus bias and residual: kTile^2 pixels, fewer at the edges of pictures with other sides.
template <class Scheme, class Stored = typename Scheme::Stored>
static void transform_output(const float* m, int64_t stride, int64_t channels, const float* bias,
                             const Stored* residual, Stored* y, int64_t row_stride, int64_t pixel_stride,
                             int64_t rows, int64_t columns, bool relu) {
  constexpr int64_t edge = Scheme::kEdge, tile = Scheme::kTile;
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector t[edge][tile];
    for (int j = 0; j < edge; j++) {
      Vector column[edge];
      for (int i = 0; i < edge; i++) column[i] = load(m + (edge * i + j) * stride + c);
      Scheme::inverse(column, t[j]);
    }
    const Vector added = load(bias + c);
    for (int64_t i = 0; i < rows; i++) {
      Vector row[edge], out[tile];
      for (int j = 0; j < edge; j++) row[j] = t[j][i];
      Scheme::inverse(row, out);
      for (int64_t j = 0; j < columns; j++) {
        const int64_t at = i * row_stride + j * pixel_stride + c;
        Vector value = out[j] + added;
        if (residual) value += load(residual + at);
        // Written so that NaN stays NaN.
        if (relu) value = value < 0.f ? Vector{} : value;
        store(y + at, value);
      }
    }
  }
}

template <class Scheme, int NB, class Stored = typename Scheme::Stored>
static void convolve_blocks(const Stored* x, const Stored* u, const float* bias, const Stored* residual, Stored* y,
                            int64_t images, int64_t height, int64_t width, int64_t in, int64_t out, bool doubled,
                            bool relu, int threads) {
  constexpr int64_t part = NB * kLanes, tile = Scheme::kTile, points = Scheme::kEdge * Scheme::kEdge;
  const int64_t down = (height + tile - 1) / tile, across = (width + tile - 1) / tile;
  const int64_t tiles = images * down * across;
  // The transformed input and products of a block take half of a core's L2 cache of 512 kB or more.
  const int64_t fitting = (256 << 10) / (points * (in * sizeof(Stored) + part * sizeof(float)));
  const int64_t size = std::min(tiles, std::max(kSums, fitting / kSums * kSums));
  const int64_t blocks = (tiles + size - 1) / size;
  // One cache line more, so that the values of a pixel do not compete for the same few lines.
  const int64_t v_stride = size * in + 64 / sizeof(Stored), m_stride = size * part + 64 / sizeof(float);
#pragma omp parallel num_threads(threads)
  {
    auto* v = static_cast<Stored*>(std::aligned_alloc(64, points * v_stride * sizeof(Stored)));
    auto* m = static_cast<float*>(std::aligned_alloc(64, points * m_stride * sizeof(float)));
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t first = block * size, rows = std::min(size, tiles - first);
      for (int64_t t = 0; t < rows; t++) {
        const int64_t index = first + t, image = index / (down * across);
        const int64_t top = tile * (index / across % down) - 1, left = tile * (index % across) - 1;
        const bool inside = top >= 0 && left >= 0 && top + Scheme::kEdge <= height && left + Scheme::kEdge <= width;
        const auto transform = inside ? transform_input<Scheme, true> : transform_input<Scheme, false>;
        transform(x + image * (height >> doubled) * (width >> doubled) * in, height, width, in, top, left, doubled,
                  v + t * in, v_stride);
      }
      for (int64_t o = 0; o < out; o += part) {
        for (int64_t p = 0; p < points; p++)
          multiply_rows<Scheme, kSums / NB, NB>(v + p * v_stride, rows, in, u + (p * out + o) * in, m + p * m_stride);
        for (int64_t t = 0; t < rows; t++) {
          const int64_t index = first + t, image = index / (down * across);
          const int64_t row = tile * (index / across % down), column = tile * (index % across);
          const int64_t at = ((image * height + row) * width + column) * out + o;
          transform_output<Scheme>(m + t * part, m_stride, part, bias + image * out + o,
                                   residual ? residual + at : nullptr, y + at, width * out, out,
                                   std::min(tile, height - row), std::min(tile, width - column), relu);
        }
      }
    }
    std::free(v);
    std::free(m);
  }
}

// How many outputs are computed together; `out` is a multiple of 16.
extern "C" int64_t outputs_together(int64_t out) {
  for (int64_t vectors : {4, 3, 2})
    if (vectors <= kSums / 6 && out % (vectors * kLanes) == 0) return vectors * kLanes;
  return kLanes;
}

template <class Scheme, class Stored = typename Scheme::Stored>
static void convolve(const Stored* x, const Stored* u, const float* bias, const Stored* residual, Stored* y,
                     int64_t images, int64_t height, int64_t width, int64_t in, int64_t out, bool doubled, bool relu,
                     int threads) {
  const int64_t vectors = outputs_together(out) / kLanes;
  auto blocks = vectors == 1 ? convolve_blocks<Scheme, 1> : convolve_blocks<Scheme, 2>;
#ifdef __AVX512F__
  if (vectors == 3) blocks = convolve_blocks<Scheme, 3>;
  if (vectors == 4) blocks = convolve_blocks<Scheme, 4>;
#endif
  blocks(x, u, bias, residual, y, images, height, width, in, out, doubled, relu, threads);
}

// x / (1 + exp(-x)); 2^z is 2^whole times a polynomial of the rest, exact to a few units in the last place.
static inline Vector silu(Vector x) {
  const Vector limit = Vector{} + 126.f;
  Vector z = x * -1.44269504f;
  z = z < -limit ? -limit : z;
  z = z > limit ? limit : z;
  // Adding 1.5 * 2^23 rounds to a whole number, which is then in the low bits.
  const Vector shifted = z + 12582912.f, rest = z - (shifted - 12582912.f);
  Vector p = 1.339887440e-3f * rest + 9.618437357e-3f;
  for (const float factor : {5.550332549e-2f, 2.402264791e-1f, 6.931472028e-1f, 1.f}) p = p * rest + factor;
  return x / (1.f + (Vector)((Integers)p + ((Integers)shifted << 23)));
}

template <class Stored>
static void normalise(const Stored* a, int64_t left, const Stored* b, int64_t right, const float* weight,
                      const float* bias, Stored* y, int64_t images, int64_t pixels, int64_t groups, float epsilon,
                      int threads) {
  // Sums over one chunk are float32, which is exact enough for this many pixels; the totals are float64.
  const int64_t chunk = 64, chunks = (pixels + chunk - 1) / chunk;
  const int64_t channels = left + right, members = channels / groups;
  const auto at = [=](int64_t pixel, int64_t c) {
    return c < left ? a + pixel * left + c : b + pixel * right + c - left;
  };
  std::vector<double> totals(2 * images * channels);
  std::vector<float> scale(images * channels), shift(images * channels);
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> own(totals.size());
#pragma omp for schedule(static)
    for (int64_t job = 0; job < images * chunks; job++) {
      const int64_t image = job / chunks, from = job % chunks * chunk, to = std::min(pixels, from + chunk);
      for (int64_t c = 0; c < channels; c += kLanes) {
        Vector sum = {}, squares = {};
        const Stored* from_here = at(image * pixels + from, c);
        const int64_t step = c < left ? left : right;
        for (int64_t pixel = from; pixel < to; pixel++, from_here += step) {
          const Vector value = load(from_here);
          sum += value, squares += value * value;
        }
        double* total = own.data() + 2 * (image * channels + c);
        for (int lane = 0; lane < kLanes; lane++) total[2 * lane] += sum[lane], total[2 * lane + 1] += squares[lane];
      }
    }
#pragma omp critical
    for (size_t i = 0; i < totals.size(); i++) totals[i] += own[i];
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t group = 0; group < images * groups; group++) {
      const int64_t begin = group * members, end = begin + members;
      double sum = 0, squares = 0;
      for (int64_t c = begin; c < end; c++) sum += totals[2 * c], squares += totals[2 * c + 1];
      const double count = static_cast<double>(members) * static_cast<double>(pixels), mean = sum / count;
      const double inverse = 1 / std::sqrt(std::max(0.0, squares / count - mean * mean) + epsilon);
      for (int64_t c = begin; c < end; c++) {
        scale[c] = static_cast<float>(weight[c % channels] * inverse);
        shift[c] = static_cast<float>(bias[c % channels] - mean * inverse * weight[c % channels]);
      }
    }
#pragma omp for schedule(static)
    for (int64_t pixel = 0; pixel < images * pixels; pixel++) {
      const int64_t first = pixel / pixels * channels;
      for (int64_t c = 0; c < channels; c += kLanes) {
        const Vector normal = load(at(pixel, c)) * load(&scale[first + c]) + load(&shift[first + c]);
        store(y + pixel * channels + c, silu(normal));
      }
    }
  }
}

// convolve: 3x3 with zero padding of 1; y = conv(x) + bias (one row per image) + residual (may be null), or 0 where
// that is negative and `relu` is set. `height` and `width` are those of y; when `doubled`, those of x are half of
// them, and its pixels count twice. `in` and `out` are multiples of 16; `u` has the layout of packed_weights.
//
// normalise: y = silu(group_norm(x)), for images of `pixels` pixels whose channels are those of `a` (`left`), then
// those of `b` (`right`, may be 0), both multiples of 16; y has all of them. The statistics are float64.
#define KERNELS(NAME, SCHEME, STORED)                                                                               \
  extern "C" void convolve_##NAME(const STORED* x, const STORED* u, const float* bias, const STORED* residual,      \
                                  STORED* y, int64_t images, int64_t height, int64_t width, int64_t in, int64_t out, \
                                  bool doubled, bool relu, int threads) {                                           \
    convolve<SCHEME>(x, u, bias, residual, y, images, height, width, in, out, doubled, relu, threads);              \
  }                                                                                                                 \
  extern "C" void normalise_##NAME(const STORED* a, int64_t left, const STORED* b, int64_t right,                   \
                                   const float* weight, const float* bias, STORED* y, int64_t images,               \
                                   int64_t pixels, int64_t groups, float epsilon, int threads) {                    \
    normalise(a, left, b, right, weight, bias, y, images, pixels, groups, epsilon, threads);                        \
  }

KERNELS(float32, Float32, float)
#ifdef __AVX512BF16__
KERNELS(bfloat16, Bfloat16, bf16)
#endif
