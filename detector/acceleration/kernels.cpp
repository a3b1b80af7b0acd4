// Two kernels for CPUs with AVX512-BF16; kernels.py compiles and calls them. Tensors are N x H x W x C.
//
// Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, F(2x2, 3x3): 16 products for
// four outputs where a 3x3 convolution needs 36. The transforms contain only 0 and +-1, so the loss of precision
// in bfloat16 is hardly larger than in a plain convolution; larger tiles lose several times as much.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

using bf16 = uint16_t;
constexpr int64_t kLanes = 16;

static inline __m512 load(const bf16* from) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static inline void store(bf16* to, __m512 value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(value));
}

// out[r][n] = sum over k of a[r][k] * w[k][n], for R rows and n < 16 * NB; the sums stay in registers.
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
    for (int b = 0; b < NB; b++) _mm512_storeu_ps(out + (r * NB + b) * kLanes, sum[r][b]);
}

template <int NB>
static void multiply_rows(const bf16* a, int64_t rows, int64_t channels, const bf16* w, float* out) {
  int64_t r = 0;
  // Six rows of four registers leave eight of the 32 registers for weights and the pair of inputs.
  for (; r + 6 <= rows; r += 6) multiply<6, NB>(a + r * channels, channels, w, out + r * NB * kLanes);
  for (; r < rows; r++) multiply<1, NB>(a + r * channels, channels, w, out + r * NB * kLanes);
}

// B^T d B of the 4x4 pixels at (top, left), zero outside the picture: 16 values per channel, `stride` apart.
static void transform_input(const bf16* x, int64_t height, int64_t width, int64_t channels, int64_t top,
                            int64_t left, bf16* v, int64_t stride) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    __m512 d[4][4];
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++) {
        const int64_t row = top + i, column = left + j;
        const bool inside = row >= 0 && row < height && column >= 0 && column < width;
        d[i][j] = inside ? load(x + (row * width + column) * channels + c) : _mm512_setzero_ps();
      }
    for (int j = 0; j < 4; j++) {
      const __m512 d0 = d[0][j], d1 = d[1][j], d2 = d[2][j], d3 = d[3][j];
      d[0][j] = d0 - d2, d[1][j] = d1 + d2, d[2][j] = d2 - d1, d[3][j] = d1 - d3;
    }
    for (int i = 0; i < 4; i++) {
      store(v + (4 * i + 0) * stride + c, d[i][0] - d[i][2]);
      store(v + (4 * i + 1) * stride + c, d[i][1] + d[i][2]);
      store(v + (4 * i + 2) * stride + c, d[i][2] - d[i][1]);
      store(v + (4 * i + 3) * stride + c, d[i][1] - d[i][3]);
    }
  }
}

// A^T m A plus bias and residual: 2x2 pixels, fewer at the edges of pictures with odd sides.
static void transform_output(const float* m, int64_t stride, int64_t channels, const float* bias,
                             const bf16* residual, bf16* y, int64_t row_stride, int64_t pixel_stride, int rows,
                             int columns) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    __m512 t[2][4];
    for (int j = 0; j < 4; j++) {
      const __m512 m0 = _mm512_loadu_ps(m + j * stride + c), m1 = _mm512_loadu_ps(m + (4 + j) * stride + c);
      const __m512 m2 = _mm512_loadu_ps(m + (8 + j) * stride + c), m3 = _mm512_loadu_ps(m + (12 + j) * stride + c);
      t[0][j] = m0 + m1 + m2, t[1][j] = m1 - m2 - m3;
    }
    const __m512 added = _mm512_loadu_ps(bias + c);
    for (int i = 0; i < rows; i++) {
      const __m512 y2[2] = {t[i][0] + t[i][1] + t[i][2] + added, t[i][1] - t[i][2] - t[i][3] + added};
      for (int j = 0; j < columns; j++) {
        const int64_t at = i * row_stride + j * pixel_stride + c;
        store(y + at, residual ? y2[j] + load(residual + at) : y2[j]);
      }
    }
  }
}

template <int NB>
static void convolve_blocks(const bf16* x, const bf16* u, const float* bias, const bf16* residual, bf16* y,
                            int64_t images, int64_t height, int64_t width, int64_t in, int64_t out, int threads) {
  const int64_t down = (height + 1) / 2, across = (width + 1) / 2, tiles = images * down * across;
  // The transformed input and products of a block fit in a core's L2 cache of about 1 MB.
  const int64_t size = in <= 256 ? 48 : 24, blocks = (tiles + size - 1) / size, part = NB * kLanes;
#pragma omp parallel num_threads(threads)
  {
    auto* v = static_cast<bf16*>(std::aligned_alloc(64, 16 * size * in * sizeof(bf16)));
    auto* m = static_cast<float*>(std::aligned_alloc(64, 16 * size * part * sizeof(float)));
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t first = block * size, rows = std::min(size, tiles - first);
      for (int64_t t = 0; t < rows; t++) {
        const int64_t tile = first + t, image = tile / (down * across);
        const int64_t top = 2 * (tile / across % down) - 1, left = 2 * (tile % across) - 1;
        transform_input(x + image * height * width * in, height, width, in, top, left, v + t * in, size * in);
      }
      for (int64_t o = 0; o < out; o += part) {
        for (int p = 0; p < 16; p++)
          multiply_rows<NB>(v + p * size * in, rows, in, u + (p * out + o) * in, m + p * size * part);
        for (int64_t t = 0; t < rows; t++) {
          const int64_t tile = first + t, image = tile / (down * across);
          const int64_t row = 2 * (tile / across % down), column = 2 * (tile % across);
          const int64_t at = ((image * height + row) * width + column) * out + o;
          transform_output(m + t * part, size * part, part, bias + image * out + o,
                           residual ? residual + at : nullptr, y + at, width * out, out,
                           static_cast<int>(std::min<int64_t>(2, height - row)),
                           static_cast<int>(std::min<int64_t>(2, width - column)));
        }
      }
    }
    std::free(v);
    std::free(m);
  }
}

// 3x3 convolution with zero padding of 1: y = conv(x) + bias (one row per image) + residual (may be null).
// `in` and `out` are multiples of 16; `u` has the layout of packed_weights in kernels.py.
extern "C" void convolve(const bf16* x, const bf16* u, const float* bias, const bf16* residual, bf16* y,
                         int64_t images, int64_t height, int64_t width, int64_t in, int64_t out, int threads) {
  const auto blocks = out % 64 == 0   ? convolve_blocks<4>
                      : out % 32 == 0 ? convolve_blocks<2>
                                      : convolve_blocks<1>;
  blocks(x, u, bias, residual, y, images, height, width, in, out, threads);
}

// x / (1 + exp(-x)); 2^z is 2^whole times a polynomial of the rest, exact to a few units in the last place.
static inline __m512 silu(__m512 x) {
  __m512 z = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
  z = _mm512_min_ps(_mm512_max_ps(z, _mm512_set1_ps(-126.f)), _mm512_set1_ps(126.f));
  const __m512 whole = _mm512_roundscale_ps(z, 8), rest = z - whole;
  __m512 p = _mm512_set1_ps(1.339887440e-3f);
  for (const float factor : {9.618437357e-3f, 5.550332549e-2f, 2.402264791e-1f, 6.931472028e-1f, 1.f})
    p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(factor));
  return _mm512_div_ps(x, _mm512_set1_ps(1.f) + _mm512_scalef_ps(p, whole));
}

// y = silu(group_norm(x)), for images of `pixels` x `channels` (a multiple of 16); the statistics are float64.
extern "C" void normalise(const bf16* x, const float* weight, const float* bias, bf16* y, int64_t images,
                          int64_t pixels, int64_t channels, int64_t groups, float epsilon, int threads) {
  // Sums over one chunk are float32, which is exact enough for this many pixels; the totals are float64.
  const int64_t chunk = 256, chunks = (pixels + chunk - 1) / chunk, members = channels / groups;
  std::vector<double> totals(2 * images * channels);
  std::vector<float> scale(images * channels), shift(images * channels);
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> own(totals.size());
#pragma omp for schedule(static)
    for (int64_t job = 0; job < images * chunks; job++) {
      const int64_t image = job / chunks, from = job % chunks * chunk, to = std::min(pixels, from + chunk);
      for (int64_t c = 0; c < channels; c += kLanes) {
        __m512 sum = _mm512_setzero_ps(), squares = sum;
        for (int64_t pixel = from; pixel < to; pixel++) {
          const __m512 value = load(x + (image * pixels + pixel) * channels + c);
          sum = sum + value, squares = _mm512_fmadd_ps(value, value, squares);
        }
        float lanes[2][kLanes];
        _mm512_storeu_ps(lanes[0], sum), _mm512_storeu_ps(lanes[1], squares);
        double* total = own.data() + 2 * (image * channels + c);
        for (int lane = 0; lane < kLanes; lane++)
          total[2 * lane] += lanes[0][lane], total[2 * lane + 1] += lanes[1][lane];
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
        const __m512 factor = _mm512_loadu_ps(&scale[first + c]), offset = _mm512_loadu_ps(&shift[first + c]);
        store(y + pixel * channels + c, silu(_mm512_fmadd_ps(load(x + pixel * channels + c), factor, offset)));
      }
    }
  }
}
