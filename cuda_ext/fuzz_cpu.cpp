// Fuzz target of the C interface: any bytes as Gaussians, poses and cameras must neither crash nor leave a bad number.
// With clang it is a libFuzzer target; elsewhere `fuzz_cpu SECONDS [SEED]` feeds it random bytes and bit patterns, and
// `fuzz_cpu pictures FILE` writes what the portable kernels draw and derive of twenty inputs, to compare two machines;
// `fuzz_cpu seeds FOLDER` writes those inputs, for libFuzzer to begin with.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gworld_native.h"

namespace {

// Reads values from the input and zeros after its end.
struct Reader {
  const uint8_t *data;
  size_t left;
  template <class T>
  T take() {
    T value{};
    const size_t size = left < sizeof value ? left : sizeof value;
    std::memcpy(&value, data, size);
    data += size;
    left -= size;
    return value;
  }
  std::vector<float> floats(size_t count) {
    std::vector<float> out(count);
    for (float &value : out) value = take<float>();
    return out;
  }
};

gw_isa chosen = GW_ISA_AUTO;
FILE *kept = nullptr;  // where to write pictures and gradients

void keep(const std::vector<float> &values) {
  if (kept) std::fwrite(values.data(), sizeof(float), values.size(), kept);
}

void require_finite(const std::vector<float> &values, const char *what) {
  for (float value : values)
    if (!std::isfinite(value)) {
      std::fprintf(stderr, "%s holds %g\n", what, static_cast<double>(value));
      std::abort();
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static gw_context *context = gw_context_create(2, chosen);
  Reader in{data, size};
  const int sh_counts[4] = {1, 4, 9, 16};
  const size_t count = in.take<uint8_t>() % 40, K = static_cast<size_t>(sh_counts[in.take<uint8_t>() % 4]);
  const int32_t width = 1 + in.take<uint8_t>() % 70, height = 1 + in.take<uint8_t>() % 70, flags = in.take<uint8_t>();
  const size_t pixels = static_cast<size_t>(width) * static_cast<size_t>(height);
  std::vector<float> means = in.floats(3 * count), quats = in.floats(4 * count), scales = in.floats(3 * count);
  std::vector<float> logits = in.floats(count), sh = in.floats(3 * K * count), link(32), camera(16), intrinsics(9);
  std::vector<int32_t> links(count);
  for (int32_t &value : links) value = in.take<uint8_t>() % 2;
  // Poses and cameras are checked by the caller (finite, rigid); here they are translations and any focal length.
  for (int k = 0; k < 4; k++) link[5 * k] = link[16 + 5 * k] = camera[5 * k] = 1;
  link[16 + 3] = static_cast<float>(in.take<int16_t>()) / 256;
  camera[11] = static_cast<float>(in.take<int16_t>()) / 256;
  intrinsics = {1.0f + in.take<uint16_t>(), 0, width / 2.0f, 0, 1.0f + in.take<uint16_t>(), height / 2.0f, 0, 0, 1};
  const gw_scene scene = {static_cast<int64_t>(count), static_cast<int32_t>(K), 2, means.data(), quats.data(), scales.data(), logits.data(), sh.data(), links.data()};
  const gw_views views = {1, 1, width, height, link.data(), camera.data(), intrinsics.data(), link.data(), camera.data(), intrinsics.data(), {0, 0, 0}, 0.01f, 1e10f, flags & 1};
  std::vector<float> rgb(3 * pixels), alpha(pixels), depth(pixels), flow(2 * pixels);
  std::vector<int32_t> link_id(pixels);
  const gw_images images = {rgb.data(), alpha.data(), flags & 2 ? depth.data() : nullptr, flags & 4 ? flow.data() : nullptr, link_id.data()};
  gw_tape *tape = nullptr;
  if (gw_render(context, &scene, &views, &images, &tape) != GW_OK) return 0;
  require_finite(rgb, "rgb");
  require_finite(alpha, "alpha");
  require_finite(depth, "depth");
  require_finite(flow, "flow");
  for (const auto *values : {&rgb, &alpha, &depth, &flow}) keep(*values);
  std::vector<float> ones(3 * pixels, 1.0f);
  const gw_images upstream = {ones.data(), ones.data(), nullptr, nullptr, nullptr};
  std::vector<float> by_means(means.size()), by_quats(quats.size()), by_scales(scales.size()), by_logits(count), by_sh(sh.size()), by_link(32), by_camera(16);
  const gw_gradients out = {by_means.data(), by_quats.data(), by_scales.data(), by_logits.data(), by_sh.data(), by_link.data(), by_camera.data(), nullptr, nullptr};
  if (gw_backward(context, &scene, &views, &images, &upstream, tape, &out) == GW_OK)
    for (const auto *values : {&by_means, &by_quats, &by_scales, &by_logits, &by_sh}) require_finite(*values, "a gradient"), keep(*values);
  gw_tape_release(context, tape);
  return 0;
}

#if !defined(GW_LIBFUZZER)
namespace {

constexpr int INPUTS = 20;

// Moderate Gaussians in front of the camera, the same on every machine: a size, modes and a harmonic degree per number.
std::vector<uint8_t> moderate_input(int number) {
  std::mt19937 rng(static_cast<unsigned>(number));
  auto uniform = [&](float low, float high) { return low + (high - low) * static_cast<float>(rng() >> 8) / 16777216.0f; };
  const int sh_count = number % 4, counts[4] = {1, 4, 9, 16}, gaussians = 39;
  std::vector<uint8_t> bytes = {gaussians, static_cast<uint8_t>(sh_count), 63, 47, static_cast<uint8_t>((number & 1) | 6)};
  auto put = [&](float value) {
    const auto *from = reinterpret_cast<const uint8_t *>(&value);
    bytes.insert(bytes.end(), from, from + sizeof value);
  };
  for (int i = 0; i < gaussians; i++) put(uniform(-1, 1)), put(uniform(-1, 1)), put(uniform(1, 4));
  for (int i = 0; i < 4 * gaussians; i++) put(uniform(-1, 1));
  for (int i = 0; i < 3 * gaussians; i++) put(uniform(-4, -1));
  for (int i = 0; i < gaussians; i++) put(uniform(-3, 3));
  for (int i = 0; i < 3 * counts[sh_count] * gaussians; i++) put(uniform(-0.5f, 0.5f));
  for (int i = 0; i < gaussians; i++) bytes.push_back(static_cast<uint8_t>(i & 1));
  for (const int value : {20, 0, 60, 60}) bytes.push_back(static_cast<uint8_t>(value)), bytes.push_back(0);
  return bytes;
}

int write_pictures(const char *path) {
  chosen = GW_ISA_PORTABLE;
  kept = std::fopen(path, "wb");
  if (!kept) return 1;
  for (int number = 0; number < INPUTS; number++) {
    const auto bytes = moderate_input(number);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  return std::fclose(kept);
}

// Inputs for libFuzzer to begin with: alone it seldom finds ones long enough to draw anything.
int write_seeds(const std::string &folder) {
  for (int number = 0; number < INPUTS; number++) {
    const auto bytes = moderate_input(number);
    FILE *file = std::fopen((folder + "/seed" + std::to_string(number)).c_str(), "wb");
    if (!file) return 1;
    const bool whole = std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
    if (std::fclose(file) || !whole) return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc == 3 && std::strcmp(argv[1], "pictures") == 0) return write_pictures(argv[2]);
  if (argc == 3 && std::strcmp(argv[1], "seeds") == 0) return write_seeds(argv[2]);
  const double seconds = argc > 1 ? std::atof(argv[1]) : 60.0;
  std::mt19937 rng(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1u);
  const float special[12] = {NAN, INFINITY, -INFINITY, 3.4e38f, 1e10f, -1e10f, 1e-45f, 0.0f, -0.0f, 88.8f, -104.0f, 1.0f};
  std::vector<uint8_t> bytes(8192);
  long runs = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (; std::chrono::steady_clock::now() < end; runs++) {
    const unsigned kind = rng() % 3;
    for (size_t i = 0; i + 4 <= bytes.size(); i += 4) {
      uint32_t word = rng();
      const float value = std::normal_distribution<float>(0.0f, 2.0f)(rng);
      if (kind > 0) std::memcpy(&word, &value, 4);
      if (kind == 2 && rng() % 16 == 0) std::memcpy(&word, &special[rng() % 12], 4);
      std::memcpy(&bytes[i], &word, 4);
    }
    for (int i = 0; i < 5; i++) bytes[static_cast<size_t>(i)] = static_cast<uint8_t>(rng());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%ld inputs, clean\n", runs);
  return 0;
}
#endif
