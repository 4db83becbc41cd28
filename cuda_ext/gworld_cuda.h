/* gworld's CUDA renderer: the plain C interface that gworld/render/native_cuda.py loads by ctypes.
 *
 * Tensors are those of gworld_native.h with pointers into device memory; contents are never trusted (a link outside
 * 0..L-1 is not drawn). The library allocates nothing and keeps no state: the caller asks for sizes, hands in device
 * buffers (64-byte aligned) and a stream, and owns what they hold. A call goes
 *
 *     gw_cuda_sizes(pairs = 0) -> gw_cuda_project(state, scratch) -> pairs      (the one wait for the device)
 *     gw_cuda_sizes(pairs)     -> gw_cuda_draw(state, lists, scratch)
 *                              -> gw_cuda_backward(state, lists, scratch), any number of times
 *
 * with the current device set by the caller. Functions return a gw_status, or GW_CUDA_ERROR + cudaError. */
#ifndef GWORLD_CUDA_H
#define GWORLD_CUDA_H
#include "gworld_native.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { GW_CUDA_ERROR = 1000 };

typedef struct gw_cuda_plan {
  gw_scene scene;
  gw_views views;
  gw_images images;    /* what is drawn; flow decides whether the previous state is projected */
  int32_t tape;        /* gw_cuda_backward will follow */
  int32_t fast;        /* sum gradients by float atomics per tile and Gaussian: less memory, other bits in every run */
} gw_cuda_plan;

typedef struct gw_cuda_bytes {
  int64_t state, lists;                  /* kept until the last backward */
  int64_t project, draw, backward;       /* scratch of one function */
} gw_cuda_bytes;

/* Number of devices of compute capability 8.0 or newer; the status says why the driver finds none at all. */
GW_API int32_t gw_cuda_device_count(int32_t *count);
/* English for a status of this library; static memory. */
GW_API const char *gw_cuda_error(int32_t status);

GW_API int32_t gw_cuda_sizes(const gw_cuda_plan *plan, int64_t pairs, gw_cuda_bytes *bytes);
/* Projects every Gaussian into every view; *pairs receives how many (tile, Gaussian) pairs the views have.
 * GW_TOO_MANY when they cannot be drawn in one call: draw fewer views. */
GW_API int32_t gw_cuda_project(const gw_cuda_plan *plan, void *state, void *scratch, void *stream, int64_t *pairs);
GW_API int32_t gw_cuda_draw(const gw_cuda_plan *plan, int64_t pairs, void *state, void *lists, void *scratch, void *stream);
/* Adds to `gradients` (null: not asked for) those of a scalar whose derivatives by plan->images, which hold the pictures
 * drawn (alpha always), are `image_gradients`. */
GW_API int32_t gw_cuda_backward(const gw_cuda_plan *plan, int64_t pairs, void *state, void *lists, void *scratch,
                                void *stream, const gw_images *image_gradients, const gw_gradients *gradients);

#ifdef __cplusplus
}
#endif
#endif
