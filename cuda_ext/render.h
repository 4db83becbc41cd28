// One view from Gaussians to pictures, and back to gradients.
#pragma once
#include "frame.h"
#include "pool.h"

namespace gw {

inline int chunks_of(int64_t count) { return static_cast<int>((count + CHUNK - 1) / CHUNK); }

// camera_from_link of every link in one world and camera. Matrices are [4,4]; `poses` has room for `links`.
void fold_poses(const float *world_from_link, const float *world_from_camera, int links, LinkPose *poses);

// The setup of one world and camera, its poses folded into `poses`.
ViewSetup setup_view(const gw_scene &scene, const gw_views &views, const gw_images &images, int world, int camera,
                     Buffer<LinkPose> &poses);

// Projects, sorts, bins. GW_OK or GW_TOO_MANY; throws std::bad_alloc.
int32_t build_frame(const Kernels &kernels, const gw_scene &scene, const Columns &columns, const ViewSetup &view,
                    Frame &frame, Pool &pool);
void draw_frame(const Kernels &kernels, const ViewSetup &view, const Frame &frame, const ImageView &images, Pool &pool);

// Scratch of a backward pass.
struct BackwardScratch {
  Buffer<GradientRow> rows;
  Buffer<double> pose_sums;  // [parts, links, POSE_SUMS]
};
// Adds one view's gradients by the Gaussians to `out`, which is cleared before with `first`. Returns [links, POSE_SUMS] sums by the folded poses, or null when
// `out` asks for no pose.
const double *backward_frame(const Kernels &kernels, const gw_scene &scene, const Columns &columns, const ViewSetup &view,
                             Frame &frame, const ImageView &pictures, const ImageView &image_gradients,
                             const gw_gradients &out, bool first, BackwardScratch &scratch, Pool &pool);

// Adds, to sums shaped [L,4,4] and [4,4], the gradient by one world's and camera's matrices from that by folded poses.
void unfold_poses(const float *world_from_link, const float *world_from_camera, int links, const double *pose_sums,
                  double *link_gradient, double *camera_gradient);

}  // namespace gw
