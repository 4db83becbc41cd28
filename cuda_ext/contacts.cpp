// Contact sweeps of the dynamics: impulses of all contacts that share bodies, as gworld/dynamics/impulses.py states them.
//
// The torch code there is the oracle, term by term. What a contact adds to a body is summed in the order of the contacts,
// and what bodies add to the joints of a world in the order of the bodies: other worlds change no bit.
#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "gworld_native.h"

namespace gw {
namespace {

template <class T>
struct Vec {
  T x, y, z;
};
template <class T>
Vec<T> at(const T *values, int64_t row) {
  return {values[3 * row], values[3 * row + 1], values[3 * row + 2]};
}
template <class T>
Vec<T> operator+(Vec<T> a, Vec<T> b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
template <class T>
Vec<T> operator-(Vec<T> a, Vec<T> b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
template <class T>
Vec<T> operator*(T s, Vec<T> a) { return {s * a.x, s * a.y, s * a.z}; }
template <class T>
T dot(Vec<T> a, Vec<T> b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <class T>
Vec<T> cross(Vec<T> a, Vec<T> b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

template <class T>
struct Body {  // what impulses on a body add up to, and what they change
  Vec<T> impulse, twist, speed, spin;
};

template <class T>
struct Sweeps {
  const gw_contacts &job;
  std::vector<int64_t> rows;      // bodies that contacts touch, rising
  std::vector<int32_t> first, second;  // by contact: places in `rows`
  std::vector<Body<T>> bodies;
  std::vector<T> rates;           // [W,V]
  std::vector<Vec<T>> drag, last_drag, begin_drag;
  std::vector<T> press, last_press, begin;

  explicit Sweeps(const gw_contacts &job) : job(job) {
    const size_t count = static_cast<size_t>(job.contacts);
    std::vector<int32_t> place(static_cast<size_t>(job.bodies), -1);
    for (size_t q = 0; q < count; q++) place[job.a[q]] = place[job.b[q]] = 0;
    for (int64_t n = 0; n < job.bodies; n++)
      if (place[n] == 0) place[n] = static_cast<int32_t>(rows.size()), rows.push_back(n);
    first.resize(count), second.resize(count);
    for (size_t q = 0; q < count; q++) first[q] = place[job.a[q]], second[q] = place[job.b[q]];
    bodies.resize(rows.size());
    if (job.values) rates.resize(static_cast<size_t>(job.worlds * job.values));
    const Vec<T> none{0, 0, 0};
    for (auto *part : {&drag, &last_drag, &begin_drag}) part->assign(count, none);
    for (auto *part : {&press, &last_press, &begin}) part->assign(count, T(0));
  }

  static const T *of(const void *values) { return static_cast<const T *>(values); }

  // What the impulses with which a sweep begins change of every body.
  void spread() {
    const Vec<T> none{0, 0, 0};
    for (auto &body : bodies) body.impulse = body.twist = none;
    for (int64_t q = 0; q < job.contacts; q++) {
      const Vec<T> impulse = begin[q] * at(of(job.normal), q) + begin_drag[q];
      Body<T> &a = bodies[first[q]], &b = bodies[second[q]];
      a.impulse = a.impulse + impulse, a.twist = a.twist + cross(at(of(job.arm_a), q), impulse);
      b.impulse = b.impulse - impulse, b.twist = b.twist - cross(at(of(job.arm_b), q), impulse);
    }
    std::fill(rates.begin(), rates.end(), T(0));
    const int64_t per_world = job.bodies / job.worlds;
    for (size_t i = 0; i < rows.size(); i++) {
      Body<T> &body = bodies[i];
      const int64_t n = rows[i];
      const T *spun = of(job.inverse_inertia) + 9 * n;
      body.speed = of(job.inverse_mass)[n] * body.impulse;
      body.spin = {dot(at(spun, 0), body.twist), dot(at(spun, 1), body.twist), dot(at(spun, 2), body.twist)};
      if (job.lies && job.lies[n]) {
        const Vec<T> up = at(of(job.up), n);
        body.speed = body.speed - dot(body.speed, up) * up;
      }
      if (!job.values) continue;
      const T felt[6] = {body.impulse.x, body.impulse.y, body.impulse.z, body.twist.x, body.twist.y, body.twist.z};
      const T *reach = of(job.reach) + 6 * job.values * n;
      T *rate = rates.data() + job.values * (n / per_world);
      for (int k = 0; k < 6; k++)
        for (int64_t v = 0; v < job.values; v++) rate[v] += felt[k] * reach[k * job.values + v];
    }
    if (!job.values) return;
    for (size_t i = 0; i < rates.size(); i++) rates[i] *= of(job.ease_joints)[i];
    for (size_t i = 0; i < rows.size(); i++) {
      const T *reach = of(job.reach) + 6 * job.values * rows[i];
      const T *rate = rates.data() + job.values * (rows[i] / per_world);
      T moved[6] = {0, 0, 0, 0, 0, 0};
      for (int k = 0; k < 6; k++)
        for (int64_t v = 0; v < job.values; v++) moved[k] += reach[k * job.values + v] * rate[v];
      bodies[i].speed = bodies[i].speed + Vec<T>{moved[0], moved[1], moved[2]};
      bodies[i].spin = bodies[i].spin + Vec<T>{moved[3], moved[4], moved[5]};
    }
  }

  // One contact's impulse, from how fast it parts under those of all.
  void solve(int64_t q, bool told) {
    const Vec<T> normal = at(of(job.normal), q);
    Vec<T> rate = at(of(job.rate), q);
    if (told) {
      const Body<T> &a = bodies[first[q]], &b = bodies[second[q]];
      rate = rate + (a.speed + cross(a.spin, at(of(job.arm_a), q)) - b.speed - cross(b.spin, at(of(job.arm_b), q)));
    }
    const T speed = dot(rate, normal);
    const T asked = begin[q] + (of(job.wanted)[q] - speed) / std::max(of(job.ease)[q], T(1e-12));
    press[q] = job.gives[q] ? std::max(asked, T(0)) : T(0);
    const Vec<T> sliding = rate - speed * normal;
    const Vec<T> held = begin_drag[q] - (T(1) / std::max(of(job.slip)[q], T(1e-12))) * sliding;
    const T size = std::max(std::sqrt(dot(held, held)), T(1e-12));
    drag[q] = std::min(of(job.friction)[q] * press[q] / size, T(1)) * held;
  }

  void run() {
    for (int32_t sweep = 0; sweep < job.sweeps; sweep++) {
      const T ahead = T(sweep) / (T(sweep) + T(3));
      for (int64_t q = 0; q < job.contacts; q++) {
        begin[q] = press[q] + ahead * (press[q] - last_press[q]);
        begin_drag[q] = drag[q] + ahead * (drag[q] - last_drag[q]);
      }
      last_press = press, last_drag = drag;
      if (sweep) spread();
      for (int64_t q = 0; q < job.contacts; q++) solve(q, sweep > 0);
    }
    T *impulse = static_cast<T *>(job.impulse), *pressed = static_cast<T *>(job.press);
    for (int64_t q = 0; q < job.contacts; q++) {
      const Vec<T> whole = press[q] * at(of(job.normal), q) + drag[q];
      impulse[3 * q] = whole.x, impulse[3 * q + 1] = whole.y, impulse[3 * q + 2] = whole.z;
      pressed[q] = press[q];
    }
  }
};

bool fits(const gw_contacts &job) {
  if (job.contacts < 0 || job.bodies < 1 || job.worlds < 1 || job.bodies % job.worlds || job.values < 0 || job.sweeps < 1)
    return false;
  const void *needed[] = {job.a, job.b, job.normal, job.arm_a, job.arm_b, job.rate, job.wanted, job.ease, job.slip,
                          job.friction, job.gives, job.inverse_mass, job.inverse_inertia, job.impulse, job.press};
  for (const void *pointer : needed)
    if (!pointer) return false;
  if ((job.lies && !job.up) || (job.values && (!job.reach || !job.ease_joints))) return false;
  for (int64_t q = 0; q < job.contacts; q++)
    if (job.a[q] < 0 || job.a[q] >= job.bodies || job.b[q] < 0 || job.b[q] >= job.bodies) return false;
  return true;
}

}  // namespace
}  // namespace gw

extern "C" int32_t gw_solve_contacts(const gw_contacts *job) {
  if (!job) return GW_BAD_ARGUMENT;
  if (!job->contacts) return GW_OK;
  if (!gw::fits(*job)) return GW_BAD_ARGUMENT;
  try {
    if (job->wide) {
      gw::Sweeps<double>(*job).run();
    } else {
      gw::Sweeps<float>(*job).run();
    }
  } catch (const std::bad_alloc &) {
    return GW_OUT_OF_MEMORY;
  }
  return GW_OK;
}
