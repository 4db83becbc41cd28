/* gworld's native library: a plain C interface, loaded by ctypes (gworld/native.py).
 *
 * All tensors are dense, row-major, float32 unless said; shapes stand behind each pointer. Functions return GW_OK or an
 * error code and never throw. Nothing is global: threads and scratch memory belong to a context, and a context's calls
 * are serialised. Pictures and gradients have the same bits for any number of threads on one instruction set. */
#ifndef GWORLD_NATIVE_H
#define GWORLD_NATIVE_H
#include <stdint.h>

#if defined(_WIN32)
#define GW_API __declspec(dllexport)
#else
#define GW_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define GW_ABI_VERSION 2

enum gw_status { GW_OK = 0, GW_BAD_ARGUMENT = 1, GW_OUT_OF_MEMORY = 2, GW_UNSUPPORTED = 3, GW_TOO_MANY = 4 };
enum gw_isa { GW_ISA_AUTO = 0, GW_ISA_PORTABLE = 1, GW_ISA_AVX2 = 2, GW_ISA_AVX512 = 3 };

typedef struct gw_context gw_context; /* a thread pool and reusable scratch memory */
typedef struct gw_tape gw_tape;       /* what one forward call keeps for its backward call */

typedef struct gw_scene {
  int64_t count;               /* N */
  int32_t sh_count;            /* K: 1, 4, 9 or 16 */
  int32_t link_count;          /* L */
  const float *means;          /* [N,3] in the link's frame, metres */
  const float *quats;          /* [N,4] wxyz, any length but zero */
  const float *log_scales;     /* [N,3] */
  const float *opacity_logits; /* [N] */
  const float *sh;             /* [N,K,3] */
  const int32_t *links;        /* [N] in 0..L-1 */
} gw_scene;

typedef struct gw_views {
  int32_t worlds, cameras, width, height;
  const float *world_from_link;            /* [W,L,4,4] rigid */
  const float *world_from_camera;          /* [C,4,4] rigid */
  const float *intrinsics;                 /* [C,3,3] pixels */
  const float *previous_world_from_link;   /* the same three in the previous state, or null when flow is not asked for */
  const float *previous_world_from_camera;
  const float *previous_intrinsics;
  float background[3];
  float near_plane, far_plane;
  int32_t antialiased;
} gw_views;

typedef struct gw_images { /* null: not asked for */
  float *rgb;              /* [W,C,H,V,3] */
  float *alpha;            /* [W,C,H,V] */
  float *depth;            /* [W,C,H,V] */
  float *flow;             /* [W,C,H,V,2] */
  int32_t *link_id;        /* [W,C,H,V] */
} gw_images;

typedef struct gw_gradients { /* null: not asked for; all are overwritten */
  float *means, *quats, *log_scales, *opacity_logits, *sh;
  float *world_from_link;            /* [W,L,4,4], last row zero */
  float *world_from_camera;          /* [C,4,4], last row zero */
  float *previous_world_from_link;   /* likewise, through flow */
  float *previous_world_from_camera;
} gw_gradients;

GW_API int32_t gw_abi_version(void);
GW_API const char *gw_version(void);
/* 1 when this machine and this build can run `isa`. */
GW_API int32_t gw_isa_available(int32_t isa);

/* `threads` >= 1 in all, the caller's included. Null when memory or threads are short or `isa` is not available. */
GW_API gw_context *gw_context_create(int32_t threads, int32_t isa);
GW_API void gw_context_destroy(gw_context *context);
GW_API int32_t gw_context_isa(const gw_context *context);

/* Draws W x C pictures. With `tape` not null, *tape receives what gw_backward needs; give it back by gw_tape_release. */
GW_API int32_t gw_render(gw_context *context, const gw_scene *scene, const gw_views *views, const gw_images *images,
                         gw_tape **tape);

/* Gradients of a scalar whose derivatives by the pictures are `image_gradients` (link_id is ignored). `images` are the
 * pictures gw_render drew: alpha always, and each picture that has a gradient. */
GW_API int32_t gw_backward(gw_context *context, const gw_scene *scene, const gw_views *views, const gw_images *images,
                           const gw_images *image_gradients, gw_tape *tape, const gw_gradients *gradients);
GW_API void gw_tape_release(gw_context *context, gw_tape *tape);

/* A background that stands still: of each camera, the Gaussians of links that do not move, projected and drawn once.
 * gw_background_draw then draws W x C pictures with the same bits as gw_render, but touches only what moves: the Gaussians
 * of links with moves[l] != 0, under the poses given. The caller sees to it that the Gaussians, cameras (the previous ones
 * too), planes and options are those of gw_background_build, and that links that do not move stand, now and before, in
 * all worlds as they stood in its first world. One draw at a time for each background. */
typedef struct gw_background gw_background;

/* `moves` [L]. `images`: not null for the pictures that gw_background_draw will be asked for; nothing is written there. */
GW_API int32_t gw_background_build(gw_context *context, const gw_scene *scene, const uint8_t *moves, const gw_views *views,
                                   const gw_images *images, gw_background **background);
GW_API void gw_background_destroy(gw_background *background);

/* `kept`: 1 when `images` still hold what the last such call drew; only tiles where movers are or were are then written. */
GW_API int32_t gw_background_draw(gw_context *context, gw_background *background, const gw_views *views,
                                  const gw_images *images, int32_t kept);

/* Training and video helpers. Workers are a thread pool and scratch memory like a context's; calls are serialised. */
typedef struct gw_workers gw_workers;

typedef struct gw_pictures {
  int32_t count, height, width;
  const float *image, *truth; /* [count,H,W,3] */
  const float *mask;          /* [count,H,W] weights >= 0, or null */
} gw_pictures;

typedef struct gw_adam_tensor {
  int64_t rows;
  int32_t width;
  float learning_rate;
  float *values;          /* [rows,width], like the next three */
  const float *gradients;
  float *first, *second;  /* moments */
} gw_adam_tensor;

typedef struct gw_adam_options {
  double beta1, beta2, eps;
  int64_t step;           /* of this step, from 1 */
  const uint8_t *visible; /* [rows]: only these rows, or null */
  int32_t only_touched;   /* 1 (then `visible` is null): only rows where the gradient of some tensor is not zero */
  int32_t bias_correction;
} gw_adam_options;

GW_API gw_workers *gw_workers_create(int32_t threads, int32_t isa);
GW_API void gw_workers_destroy(gw_workers *workers);

/* *value = (1 - ssim_weight) mean |image - truth| + ssim_weight (1 - mean SSIM), over the mask's pixels; `gradient`
 * [count,H,W,3], by the image, or null. */
GW_API int32_t gw_l1_ssim(gw_workers *workers, const gw_pictures *pictures, float ssim_weight, float *gradient,
                          double *value);

/* One Adam step in place. With `visible` or `only_touched` all tensors have the same rows; other rows keep all they had. */
GW_API int32_t gw_adam(gw_workers *workers, const gw_adam_tensor *tensors, int32_t count, const gw_adam_options *options);

/* rgb [H,W,3] in 0..1 to I420, BT.709 limited range: H' W' bytes of luma, then H' W' / 4 of Cb and of Cr, where H' and W'
 * are H and W rounded up to even numbers. */
GW_API int32_t gw_yuv420(gw_workers *workers, const float *rgb, int32_t height, int32_t width, uint8_t *planes);

/* Contacts of the dynamics, solved together by Jacobi sweeps with Nesterov's momentum (gworld/dynamics/impulses.py states
 * the rules). Numbers are float, or double where `wide`. Bodies stand world by world, N = W L. */
typedef struct gw_contacts {
  int64_t contacts, bodies, worlds, values; /* Q, N, W, V: joint values per world, 0 where no joint gives way */
  int32_t sweeps, wide;
  const int64_t *a, *b;       /* [Q] bodies of each contact */
  const void *normal;         /* [Q,3] from b to a */
  const void *arm_a, *arm_b;  /* [Q,3] */
  const void *rate;           /* [Q,3] velocity of a against b without impulses */
  const void *wanted;         /* [Q] at which speed along the normal they shall part */
  const void *ease, *slip;    /* [Q] change of that speed by a unit impulse, and of any speed at most, shares counted */
  const void *friction;       /* [Q] */
  const uint8_t *gives;       /* [Q] 1: something moves along the normal */
  const void *inverse_mass;   /* [N] */
  const void *inverse_inertia; /* [N,3,3] in the world's axes */
  const uint8_t *lies;        /* [N] 1: moves across `up` alone; or null */
  const void *up;             /* [N,3] or null */
  const void *reach;          /* [N,6,V] or null */
  const void *ease_joints;    /* [W,V] or null */
  void *impulse;              /* out [Q,3] on a */
  void *press;                /* out [Q] its part along the normal */
} gw_contacts;

GW_API int32_t gw_solve_contacts(const gw_contacts *job);

#ifdef __cplusplus
}
#endif
#endif
