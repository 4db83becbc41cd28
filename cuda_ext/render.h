// One view from Gaussians to pictures, and back to gradients.
#pragma once
#include "frame.h"
#include "pool.h"

namespace gw {

inline int chunks_of(int64_t count) { return static_cast<int>((count + CHUNK - 1) / CHUNK); }

// camera_from_link of every link in one world and camera. Matrices are [4,4]; `poses` has room for `links`.
void fold_poses(const float *world_from_link, const float *world_from_camera, int links, LinkPose *poses);

ViewSetup setup_view(const gw_scene &scene, const gw_views &views, const gw_images &images, int camera);

// Projects, sorts, bins. GW_OK or GW_TOO_MANY; throws std::bad_alloc.
int32_t build_frame(const Kernels &kernels, const gw_scene &scene, const Columns &columns, const ViewSetup &view,
                    Frame &frame, Pool &pool);
void draw_frame(const Kernels &kernels, const ViewSetup &view, const Frame &frame, const ImageView &images, Pool &pool);

// Scratch of a backward pass.
struct BackwardScratch {
  Buffer<GradientRow> rows;
  Buffer<double> pose_sums;  // [chunks, links, POSE_SUMS]
};
// Adds one view's gradients to `gradients`, of which the pose entries point at this view's matrices.
void backward_frame(const Kernels &kernels, const gw_scene &scene, const Columns &columns, const ViewSetup &view,
                    Frame &frame, const ImageView &pictures, const ImageView &image_gradients,
                    const gw_gradients &gradients, BackwardScratch &scratch, Pool &pool);

// Adds the gradient by the matrices of one world and camera to [L,4,4] and [4,4] sums in double.
void unfold_poses(const float *world_from_link, const float *world_from_camera, int links, const double *pose_sums,
                  double *link_gradient, double *camera_gradient);

}  // namespace gw
