#include "lists.h"

#include <cstring>

namespace gw {
namespace {

constexpr int DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS;

// Stable radix sort of items by their upper 32 bits, which lie in low..high; the result ends up in `items`.
void radix_sort(uint64_t *items, uint64_t *swap, size_t count, uint32_t low, uint32_t high) {
  const int bits = high > low ? 32 - __builtin_clz(high - low) : 0;
  const int passes = (bits + DIGIT_BITS - 1) / DIGIT_BITS;
  if (count < 2 || passes == 0) return;
  const int width = (bits + passes - 1) / passes;
  const uint32_t mask = (1u << width) - 1;
  uint32_t starts[3][DIGITS];
  std::memset(starts, 0, sizeof starts);
  for (size_t i = 0; i < count; i++) {
    const uint32_t key = static_cast<uint32_t>(items[i] >> 32) - low;
    for (int pass = 0; pass < passes; pass++) starts[pass][key >> (pass * width) & mask]++;
  }
  uint64_t *from = items, *to = swap;
  for (int pass = 0; pass < passes; pass++) {
    uint32_t sum = 0;
    for (uint32_t d = 0; d <= mask; d++) {
      const uint32_t here = starts[pass][d];
      starts[pass][d] = sum;
      sum += here;
    }
    const int shift = pass * width;
    for (size_t i = 0; i < count; i++) {
      const uint32_t key = static_cast<uint32_t>(from[i] >> 32) - low;
      to[starts[pass][key >> shift & mask]++] = from[i];
    }
    uint64_t *other = from;
    from = to;
    to = other;
  }
  if (from != items) std::memcpy(items, from, count * sizeof *items);
}

// Gathers the records of chunks first..last-1 from items[at], sorted.
void sort_part(const Frame &frame, int first, int last, uint64_t *items, uint64_t *swap) {
  uint64_t *out = items;
  uint32_t low = UINT32_MAX, high = 0;
  for (int chunk = first; chunk < last; chunk++) {
    const size_t base = static_cast<size_t>(chunk) * CHUNK;
    for (uint32_t i = 0; i < frame.chunk_count[chunk]; i++) {
      const uint32_t key = frame.keys[base + i];
      low = key < low ? key : low;
      high = key > high ? key : high;
      *out++ = static_cast<uint64_t>(key) << 32 | (base + i);
    }
  }
  radix_sort(items, swap, static_cast<size_t>(out - items), low, high);
}

// How many of the first `rank` items of the merged sequence come from a (items are distinct).
size_t split_of(const uint64_t *a, size_t count_a, const uint64_t *b, size_t count_b, size_t rank) {
  size_t low = rank > count_b ? rank - count_b : 0, high = rank < count_a ? rank : count_a;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (a[middle] < b[rank - middle - 1])
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

void merge_span(const uint64_t *a, size_t count_a, const uint64_t *b, size_t count_b, size_t from, size_t to, uint64_t *out) {
  size_t i = split_of(a, count_a, b, count_b, from), j = from - i;
  size_t rank = from;
  for (; rank < to && i < count_a && j < count_b; rank++) {
    const bool first = a[i] < b[j];
    out[rank] = first ? a[i] : b[j];
    i += first;
    j += !first;
  }
  for (; rank < to; rank++) out[rank] = i < count_a ? a[i++] : b[j++];
}

// Merges neighbouring runs (bounds[0..runs]) pairwise until one is left; each merge is cut into `pieces`.
void merge_runs(Frame &frame, std::vector<size_t> bounds, int pieces, Pool &pool) {
  while (bounds.size() > 2) {
    const int pairs = static_cast<int>(bounds.size()) / 2;
    pool.run(pairs * pieces, [&](int task) {
      const size_t pair = static_cast<size_t>(task / pieces), piece = static_cast<size_t>(task % pieces);
      const size_t a = bounds[2 * pair], b = bounds[2 * pair + 1];
      const size_t end = 2 * pair + 2 < bounds.size() ? bounds[2 * pair + 2] : b;
      const size_t size = end - a;
      merge_span(frame.order.data + a, b - a, frame.order.data + b, end - b, size * piece / static_cast<size_t>(pieces),
                 size * (piece + 1) / static_cast<size_t>(pieces), frame.order_swap.data + a);
    });
    std::swap(frame.order.data, frame.order_swap.data);
    std::swap(frame.order.capacity, frame.order_swap.capacity);
    std::vector<size_t> next;
    for (size_t i = 0; i < bounds.size(); i += 2) next.push_back(bounds[i]);
    if (bounds.size() % 2 == 0) next.push_back(bounds.back());
    bounds.swap(next);
  }
}

// Counts, for the records order[first..last-1], entries and tiles by row of tiles: first as differences from the row
// before, which costs the same however many rows a record covers.
void count_rows(Frame &frame, size_t rows, size_t first, size_t last, int part) {
  uint32_t *counts = frame.row_counts.data + part * (rows + 1);
  uint64_t *tiles = frame.row_tiles.data + part * (rows + 1);
  std::memset(counts, 0, (rows + 1) * sizeof *counts);
  std::memset(tiles, 0, (rows + 1) * sizeof *tiles);
  for (size_t i = first; i < last; i++) {
    if (i + 32 < last) __builtin_prefetch(&frame.places[static_cast<uint32_t>(frame.order[i + 32])]);
    const TileRect rect = frame.places[static_cast<uint32_t>(frame.order[i])].rect;
    frame.sorted_rects[i] = rect;
    const uint64_t width = static_cast<uint64_t>(rect.x1 - rect.x0 + 1);
    counts[rect.y0]++;
    counts[rect.y1 + 1]--;
    tiles[rect.y0] += width;
    tiles[rect.y1 + 1] -= width;
  }
  for (size_t row = 1; row < rows; row++) {
    counts[row] += counts[row - 1];
    tiles[row] += tiles[row - 1];
  }
}

// Deals the entries of one row of tiles out to its tiles.
void fill_row(Frame &frame, size_t columns, size_t row) {
  uint32_t *start = frame.tile_start.data + row * columns;
  const RowEntry *entry = frame.row_entries.data + frame.row_start[row].entries;
  const RowEntry *end = frame.row_entries.data + frame.row_start[row + 1].entries;
  uint32_t next[MAX_TILES + 1];
  std::memset(next, 0, (columns + 1) * sizeof *next);
  for (const RowEntry *e = entry; e < end; e++) {
    next[e->x0]++;
    next[e->x1 + 1]--;
  }
  uint32_t sum = frame.row_start[row].tiles, count = 0;
  for (size_t x = 0; x < columns; x++) {
    count += next[x];
    start[x] = next[x] = sum;
    sum += count;
  }
  uint32_t *lists = frame.lists.data;
  for (; entry < end; entry++)
    for (size_t x = entry->x0; x <= entry->x1; x++) lists[next[x]++] = entry->record;
}

}  // namespace

void sort_by_depth(Frame &frame, int chunks, Pool &pool) {
  const int parts = pool.threads() < chunks ? pool.threads() : (chunks > 0 ? chunks : 1);
  std::vector<size_t> bounds(static_cast<size_t>(parts) + 1, 0);
  auto first_chunk = [&](int part) { return static_cast<int>(static_cast<int64_t>(chunks) * part / parts); };
  for (int part = 0; part < parts; part++) {
    bounds[part + 1] = bounds[part];
    for (int chunk = first_chunk(part); chunk < first_chunk(part + 1); chunk++) bounds[part + 1] += frame.chunk_count[chunk];
  }
  frame.visible = bounds[parts];
  frame.order.reserve(frame.visible);
  frame.order_swap.reserve(frame.visible);
  pool.run(parts, [&](int part) {
    const size_t at = bounds[part];
    sort_part(frame, first_chunk(part), first_chunk(part + 1), frame.order.data + at, frame.order_swap.data + at);
  });
  merge_runs(frame, bounds, parts, pool);
}

// In two steps, by rows of tiles and then by tiles, so that each step writes to few places at a time.
bool fill_tile_lists(const ViewSetup &view, Frame &frame, Pool &pool) {
  const size_t rows = static_cast<size_t>(view.tiles_y), columns = static_cast<size_t>(view.tiles_x);
  const size_t visible = frame.visible, parts = visible < 4096 ? 1 : static_cast<size_t>(pool.threads());
  auto begin = [&](size_t part) { return visible * part / parts; };
  frame.sorted_rects.reserve(visible);
  frame.row_counts.reserve(parts * (rows + 1));
  frame.row_start.reserve(rows + 1);
  frame.row_tiles.reserve(parts * (rows + 1));
  frame.tile_start.reserve(rows * columns + 1);
  pool.run(static_cast<int>(parts), [&](int part) { count_rows(frame, rows, begin(part), begin(part + 1), part); });
  uint64_t entries = 0, tiles = 0;
  for (size_t row = 0; row < rows; row++) {
    frame.row_start[row] = {static_cast<uint32_t>(entries), static_cast<uint32_t>(tiles)};
    for (size_t part = 0; part < parts; part++) {
      uint32_t &count = frame.row_counts[part * (rows + 1) + row];
      const uint32_t here = count;
      count = static_cast<uint32_t>(entries);
      entries += here;
      tiles += frame.row_tiles[part * (rows + 1) + row];
    }
    if (entries > INT32_MAX || tiles > INT32_MAX) return false;
  }
  frame.row_start[rows] = {static_cast<uint32_t>(entries), static_cast<uint32_t>(tiles)};
  frame.tile_start[rows * columns] = static_cast<uint32_t>(tiles);
  frame.row_entries.reserve(entries);
  frame.lists.reserve(tiles);
  pool.run(static_cast<int>(parts), [&](int part) {
    uint32_t *next = frame.row_counts.data + part * (rows + 1);
    for (size_t i = begin(part); i < begin(part + 1); i++) {
      const TileRect rect = frame.sorted_rects[i];
      const RowEntry entry = {static_cast<uint32_t>(frame.order[i]), rect.x0, rect.x1};
      for (size_t row = rect.y0; row <= rect.y1; row++) frame.row_entries[next[row]++] = entry;
    }
  });
  pool.run(static_cast<int>(rows), [&](int row) { fill_row(frame, columns, static_cast<size_t>(row)); });
  return true;
}

}  // namespace gw
