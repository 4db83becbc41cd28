// The C interface of the training and video helpers: checks arguments, splits the work, adds up in a fixed order.
#include "train.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "pool.h"

namespace gw {
namespace {

constexpr int64_t ADAM_CHUNK = 1 << 14;  // floats of one task
constexpr int YUV_PAIRS = 16;            // pairs of pixel rows of one task

const TrainKernels &train_kernels_of(int32_t isa) {
#if defined(GW_HAVE_AVX2)
  if (isa == GW_ISA_AVX2) return train_kernels_avx2();
#endif
#if defined(GW_HAVE_AVX512)
  if (isa == GW_ISA_AVX512) return train_kernels_avx512();
#endif
  return train_kernels_portable();
}

}  // namespace
}  // namespace gw

struct gw_workers {
  gw_workers(int threads, int32_t isa) : kernels(gw::train_kernels_of(isa)), pool(threads), scratch(threads) {}
  const gw::TrainKernels &kernels;
  gw::Pool pool;
  std::mutex mutex;
  std::vector<std::unique_ptr<gw::LossScratch>> scratch;  // one per thread
  std::vector<gw::LossSums> sums;                         // one per tile
  std::vector<double> row_sums;
};

namespace gw {
namespace {

// What the mask's weights add up to, row by row: the same bits for any number of threads.
double mask_total(gw_workers &workers, const gw_pictures &pictures) {
  const int64_t rows = static_cast<int64_t>(pictures.count) * pictures.height;
  workers.row_sums.resize(static_cast<size_t>(rows));
  workers.pool.run(static_cast<int>(rows), [&](int row) {
    const float *mask = pictures.mask + static_cast<int64_t>(row) * pictures.width;
    double part[4] = {0.0, 0.0, 0.0, 0.0};
    for (int i = 0; i < pictures.width; i++) part[i & 3] += mask[i];
    workers.row_sums[static_cast<size_t>(row)] = part[0] + part[1] + part[2] + part[3];
  });
  double total = 0.0;
  for (const double sum : workers.row_sums) total += sum;
  return total;
}

void loss(gw_workers &workers, const gw_pictures &pictures, float ssim_weight, float *gradient, double *value) {
  const int64_t pixels = static_cast<int64_t>(pictures.count) * pictures.height * pictures.width;
  const double counted = 3.0 * (pictures.mask ? mask_total(workers, pictures) : static_cast<double>(pixels));
  const double scale = counted == 0.0 ? 0.0 : 1.0 / counted;
  const LossJob job = {pictures.image,
                       pictures.truth,
                       pictures.mask,
                       gradient,
                       pictures.height,
                       pictures.width,
                       (pictures.width + LOSS_WIDTH - 1) / LOSS_WIDTH,
                       (pictures.height + LOSS_HEIGHT - 1) / LOSS_HEIGHT,
                       static_cast<float>((1.0 - ssim_weight) * scale),
                       static_cast<float>(ssim_weight * scale)};
  const int tiles = pictures.count * job.tiles_x * job.tiles_y, threads = std::min(workers.pool.threads(), tiles);
  workers.sums.resize(static_cast<size_t>(tiles));
  for (int i = 0; i < threads; i++)
    if (!workers.scratch[static_cast<size_t>(i)]) workers.scratch[static_cast<size_t>(i)].reset(new LossScratch());
  std::atomic<int> next{0};
  workers.pool.run(threads, [&](int i) {
    for (int tile; (tile = next.fetch_add(1, std::memory_order_relaxed)) < tiles;)
      workers.sums[static_cast<size_t>(tile)] = workers.kernels.loss_tile(job, *workers.scratch[static_cast<size_t>(i)], tile);
  });
  LossSums total = {0.0, 0.0};
  for (const LossSums &sums : workers.sums) {
    total.l1 += sums.l1;
    total.dissimilarity += sums.dissimilarity;
  }
  *value = scale * ((1.0 - ssim_weight) * total.l1 + ssim_weight * total.dissimilarity);
}

bool valid(const gw_pictures &pictures) {
  if (pictures.count < 1 || pictures.height < 1 || pictures.width < 1 || !pictures.image || !pictures.truth) return false;
  return static_cast<int64_t>(pictures.count) * pictures.height <= INT32_MAX / 4 && pictures.width <= 1 << 24 &&
         static_cast<int64_t>(pictures.count) * pictures.height * pictures.width <= INT64_MAX / 64;
}

bool valid(const gw_adam_tensor *tensors, int32_t count, const gw_adam_options &options) {
  if (options.step < 1 || options.only_touched < 0 || options.only_touched > 1) return false;
  if (options.only_touched && options.visible) return false;
  for (int i = 0; i < count; i++) {
    const gw_adam_tensor &t = tensors[i];
    if (t.rows < 0 || t.width < 1 || t.rows > INT32_MAX / 2) return false;
    if (t.rows && !(t.values && t.gradients && t.first && t.second)) return false;
    if ((options.visible || options.only_touched) && t.rows != tensors[0].rows) return false;
  }
  return true;
}

AdamRates rates_of(const gw_adam_tensor &tensor, const gw_adam_options &options) {
  const double step = static_cast<double>(options.step);
  const double first = options.bias_correction ? 1.0 - std::pow(options.beta1, step) : 1.0;
  const double second = options.bias_correction ? 1.0 - std::pow(options.beta2, step) : 1.0;
  return {static_cast<float>(options.beta1),          static_cast<float>(1.0 - options.beta1),
          static_cast<float>(options.beta2),          static_cast<float>(1.0 - options.beta2),
          static_cast<float>(options.eps),            static_cast<float>(1.0 / std::sqrt(second)),
          static_cast<float>(tensor.learning_rate / first)};
}

void adam_dense(gw_workers &workers, const gw_adam_tensor &tensor, const AdamRates &rates) {
  const int64_t total = tensor.rows * tensor.width;
  workers.pool.run(static_cast<int>((total + ADAM_CHUNK - 1) / ADAM_CHUNK), [&](int chunk) {
    workers.kernels.adam(tensor, rates, chunk * ADAM_CHUNK, std::min(total, (chunk + 1) * ADAM_CHUNK));
  });
}

// Steps the rows of one chunk that count.
void adam_sparse(gw_workers &workers, const gw_adam_tensor *tensors, const std::vector<AdamRates> &rates,
                 const gw_adam_options &options, int chunk) {
  const int64_t begin = static_cast<int64_t>(chunk) * ROW_CHUNK;
  const int count = static_cast<int>(std::min<int64_t>(tensors[0].rows - begin, ROW_CHUNK));
  float marks[ROW_CHUNK] = {};
  int32_t index[ROW_CHUNK];
  for (const bool wide : {true, false})  // wide rows are quickly looked through, and spare most of the others
    for (size_t i = 0; i < rates.size() && options.only_touched; i++)
      if (wide == (tensors[i].width >= 16))
        workers.kernels.mark_nonzero(tensors[i].gradients + begin * tensors[i].width, count, tensors[i].width, marks);
  for (int i = 0; i < count && options.visible; i++) marks[i] = options.visible[begin + i] ? 1.0f : 0.0f;
  MarkedRows rows = {begin, count, 0, marks, index};
  for (int i = 0; i < count; i++)
    if (marks[i] > 0.0f) index[rows.found++] = i;
  for (size_t i = 0; i < rates.size() && rows.found; i++) workers.kernels.adam_rows(tensors[i], rates[i], rows);
}

void adam(gw_workers &workers, const gw_adam_tensor *tensors, int32_t count, const gw_adam_options &options) {
  std::vector<AdamRates> rates;
  for (int i = 0; i < count; i++) rates.push_back(rates_of(tensors[i], options));
  if (!options.visible && !options.only_touched) {
    for (int i = 0; i < count; i++) adam_dense(workers, tensors[i], rates[static_cast<size_t>(i)]);
  } else if (count) {
    workers.pool.run(static_cast<int>((tensors[0].rows + ROW_CHUNK - 1) / ROW_CHUNK),
                     [&](int chunk) { adam_sparse(workers, tensors, rates, options, chunk); });
  }
}

template <class Work>
int32_t guarded(gw_workers &workers, const Work &work) {
  try {
    const std::lock_guard<std::mutex> lock(workers.mutex);
    work();
    return GW_OK;
  } catch (...) {
    return GW_OUT_OF_MEMORY;
  }
}

}  // namespace
}  // namespace gw

extern "C" {

GW_API gw_workers *gw_workers_create(int32_t threads, int32_t isa) {
  if (threads < 1 || threads > 4096 || isa < GW_ISA_AUTO || isa > GW_ISA_AVX512 || !gw_isa_available(isa)) return nullptr;
  if (isa == GW_ISA_AUTO)
    for (isa = GW_ISA_AVX512; !gw_isa_available(isa);) isa--;
  try {
    return new gw_workers(threads, isa);
  } catch (...) {
    return nullptr;
  }
}
GW_API void gw_workers_destroy(gw_workers *workers) { delete workers; }

GW_API int32_t gw_l1_ssim(gw_workers *workers, const gw_pictures *pictures, float ssim_weight, float *gradient,
                          double *value) {
  if (!workers || !pictures || !value || !gw::valid(*pictures)) return GW_BAD_ARGUMENT;
  return gw::guarded(*workers, [&] { gw::loss(*workers, *pictures, ssim_weight, gradient, value); });
}

GW_API int32_t gw_adam(gw_workers *workers, const gw_adam_tensor *tensors, int32_t count, const gw_adam_options *options) {
  if (!workers || count < 0 || (count && !tensors) || !options || !gw::valid(tensors, count, *options)) return GW_BAD_ARGUMENT;
  return gw::guarded(*workers, [&] { gw::adam(*workers, tensors, count, *options); });
}

GW_API int32_t gw_yuv420(gw_workers *workers, const float *rgb, int32_t height, int32_t width, uint8_t *planes) {
  if (!workers || !rgb || !planes || height < 1 || width < 1 || height > 1 << 24 || width > 1 << 24) return GW_BAD_ARGUMENT;
  const int pairs = (height + 1) / 2;
  return gw::guarded(*workers, [&] {
    workers->pool.run((pairs + gw::YUV_PAIRS - 1) / gw::YUV_PAIRS, [&](int part) {
      for (int pair = part * gw::YUV_PAIRS; pair < std::min(pairs, (part + 1) * gw::YUV_PAIRS); pair++)
        workers->kernels.yuv_rows(rgb, height, width, planes, pair);
    });
  });
}

}  // extern "C"
