// Attention of one head: softmax(q k' / sqrt(width)) v, and its gradients, without the matrix of scores in memory.
// One work item is one batch element and one head. Keys are taken in tiles that stay in the first-level cache and
// lie there transposed, so that a vector holds the same component of several keys; queries are taken kQueries at a
// time, as many as registers hold. Blocks of keys that the mask hides from all of these are skipped.
//
// Scores are in units of log 2: queries are scaled by log2(e) / sqrt(width), so that softmax is 2^score / sum.
#pragma once
#include "items.h"
#include "transpose_kernel.h"

namespace {
using namespace map_ops;

constexpr int kQueries = kQueryBlock;
constexpr int64_t kBlock = 2 * kLanes;   // keys whose scores with kQueries queries fill the registers
constexpr int64_t kKeys = 128;           // of a tile, a multiple of kBlock and of the 32 keys in a word of the mask
constexpr int64_t kSpan = 8 * kQueries;  // queries that read a tile before the next one is fetched
constexpr float kNone = -__builtin_inff();
enum Kind : uint8_t { kHidden, kPartly, kSeen };

inline int64_t round_up(int64_t n, int64_t unit) { return parts(n, unit) * unit; }
inline int64_t at_most(int64_t n, int64_t limit) { return n < limit ? n : limit; }
inline int64_t wide(const AttentionCall& call) { return round_up(call.width, kLanes); }

template <class T>
inline const T* row(const Heads& heads, int64_t batch, int64_t head, int64_t step) {
  return static_cast<const T*>(heads.data) + batch * heads.batch_stride + step * heads.step_stride +
         head * heads.head_stride;
}

// Which keys the queries of a block see. A mask of one row, and no mask, are the same for every query.
struct Sight {
  const uint32_t* words;
  const uint8_t* kinds;
  int64_t word_stride;

  Sight(const AttentionCall& call, int64_t batch, int64_t query) {
    const int64_t element = call.mask_batch == 1 ? 0 : batch, first = call.mask_rows == 1 ? 0 : query;
    const int64_t count = mask_blocks(call);
    word_stride = call.mask_rows == 1 ? 0 : mask_words(call);
    words = call.mask_words + (element * mask_padded_rows(call) + first) * mask_words(call);
    kinds = call.mask_kinds + (element * mask_row_blocks(call) + first / kQueries) * count;
  }
  Kind kind(int64_t key) const { return static_cast<Kind>(kinds[key / kBlock]); }
  uint32_t seen(int query, int64_t key) const { return words[query * word_stride + key / 32] >> key % 32; }
};

// Writes a bit for every query and key, and the kind of each block of both; keys past the last are hidden.
void attention_mask(const AttentionCall& call, int64_t item, float*) {
  const int64_t row_blocks = mask_row_blocks(call), words = mask_words(call), first = item % row_blocks * kQueries;
  const int64_t element = item / row_blocks, count = at_most(call.mask_rows - first, kQueries);
  uint32_t* into = call.mask_words + (element * mask_padded_rows(call) + first) * words;
  for (int64_t i = 0; i < (call.mask_rows == 1 ? 1 : kQueries); ++i) {
    const int64_t at = element * call.mask_rows + first + (i < count ? i : count - 1);  // rows past the last repeat it
    for (int64_t word = 0; word < words; ++word) {
      const int64_t keys = at_most(call.keys - word * 32, 32);
      uint32_t bits = 0;
      for (int64_t j = 0; j < keys; ++j) {
        bits |= static_cast<uint32_t>(!call.mask || call.mask[at * call.keys + word * 32 + j]) << j;
      }
      into[i * words + word] = bits;
    }
  }
  const Sight sight(call, element, first);
  const uint32_t whole = kBlock == 32 ? ~0u : (1u << kBlock % 32) - 1;
  for (int64_t key = 0; key < call.keys; key += kBlock) {
    uint32_t any = 0, all = whole;
    for (int i = 0; i < kQueries; ++i) {
      any |= sight.seen(i, key);
      all &= sight.seen(i, key);
    }
    const Kind kind = !(any & whole) ? kHidden : all == whole ? kSeen : kPartly;
    call.mask_kinds[(element * row_blocks + first / kQueries) * mask_blocks(call) + key / kBlock] = kind;
  }
}

// kQueries rows of a block's numbers; a vector for each half of its keys.
struct Block {
  vf at[kQueries][2];
};

// Keeps the compiler from rereading the number from memory at each use.
inline vf in_register(vf v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

// Products of kQueries rows of x with a block of keys, whose components lie a tile apart.
inline Block products(const float* x, const float* keys, int64_t width, int64_t filled) {
  Block s = {};
  for (int64_t c = 0; c < width; ++c) {
    const vf first = load_all(keys + c * kKeys), second = load_all(keys + c * kKeys + kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < kQueries; ++i) {
      const vf number = splat(x[i * filled + c]);
      s.at[i][0] += number * first;
      s.at[i][1] += number * second;
    }
  }
  return s;
}

// into[c] += sum over the rows of x[row][c] * weight[row]; the counterpart of products.
inline void add_products(float* into, const float* x, const float* weight, int64_t width, int64_t filled) {
  Block w;
#pragma GCC unroll 6
  for (int i = 0; i < kQueries; ++i) {
    w.at[i][0] = in_register(load_all(weight + i * kKeys));
    w.at[i][1] = in_register(load_all(weight + i * kKeys + kLanes));
  }
  for (int64_t c = 0; c < width; ++c) {
    vf first = load_all(into + c * kKeys), second = load_all(into + c * kKeys + kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < kQueries; ++i) {
      const vf number = splat(x[i * filled + c]);
      first += number * w.at[i][0];
      second += number * w.at[i][1];
    }
    store_all(into + c * kKeys, first);
    store_all(into + c * kKeys + kLanes, second);
  }
}

// The lanes whose bit is set; `no` in the others.
inline vf lanes_of(uint32_t bits, vf yes, float no) {
  vi lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = 1 << i;
  const vi word = vi{} + static_cast<int32_t>(bits);
  return (word & lane) == lane ? yes : splat(no);
}

inline void hide(Block& s, const Sight& sight, int64_t key, float value) {
  for (int i = 0; i < kQueries; ++i) {
    const uint32_t bits = sight.seen(i, key);
    s.at[i][0] = lanes_of(bits, s.at[i][0], value);
    s.at[i][1] = lanes_of(bits >> kLanes, s.at[i][1], value);
  }
}

// 2^x of a score minus the largest, which is above 0 by rounding only; 0 where x is below -126.
inline vf share(vf x) { return x < splat(-126.0f) ? vf{} : exp2_between(x); }

// All lanes reduced pairwise.
template <class Join>
inline float fold(vf v, Join join) {
  float x[kLanes];
  store_all(x, v);
  for (int half = kLanes / 2; half; half /= 2) {
    for (int i = 0; i < half; ++i) x[i] = join(x[i], x[i + half]);
  }
  return x[0];
}

inline float larger_of(float a, float b) { return a < b ? b : a; }
inline float sum_of(float a, float b) { return a + b; }

// The blocks of a tile that any of a block of queries sees, by their first key in the tile.
struct Found {
  int64_t count = 0;
  int64_t key[kKeys / kBlock];
};

// acc[row] += sum over the visible keys of weight[row][key] * values[key], kWide vectors of the head at a time.
template <int kWide>
inline void gather(float* acc, const float* weight, const float* values, const Found& found, int64_t width) {
  vf sum[kQueries][kWide];
#pragma GCC unroll 6
  for (int i = 0; i < kQueries; ++i) {
    for (int c = 0; c < kWide; ++c) sum[i][c] = load_all(acc + i * width + c * kLanes);
  }
  for (int64_t n = 0; n < found.count; ++n) {
    const float* value = values + found.key[n] * width;
    for (int64_t j = 0; j < kBlock; ++j, value += width) {
      vf number[kWide];
      for (int c = 0; c < kWide; ++c) number[c] = load_all(value + c * kLanes);
#pragma GCC unroll 6
      for (int i = 0; i < kQueries; ++i) {
        const vf factor = splat(weight[i * kKeys + n * kBlock + j]);
        for (int c = 0; c < kWide; ++c) sum[i][c] += factor * number[c];
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kQueries; ++i) {
    for (int c = 0; c < kWide; ++c) store_all(acc + i * width + c * kLanes, sum[i][c]);
  }
}

inline void gather_all(float* acc, const float* weight, const float* values, const Found& found, int64_t width) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= width; c += 2 * kLanes) gather<2>(acc + c, weight, values + c, found, width);
  if (c < width) gather<1>(acc + c, weight, values + c, found, width);
}

// Rows of a head lie far apart: the processor does not prefetch the next ones by itself.
template <class T>
__attribute__((always_inline)) inline void fetch_row(const Heads& from, int64_t batch, int64_t head, int64_t step,
                                                     int64_t width) {
  const T* source = row<T>(from, batch, head, step);
  for (int64_t c = 0; c < width; c += 64 / sizeof(T)) __builtin_prefetch(source + c);
}

// Copies `count` rows of a head, scaled and padded with zeros to `rows` rows of `filled` numbers.
template <class T>
inline void copy_rows(const Heads& from, int64_t batch, int64_t head, int64_t first, int64_t count, int64_t rows,
                      int64_t width, int64_t filled, float scale, float* into) {
  for (int64_t i = 0; i < count; ++i, into += filled) {
    if (i + kAhead < count) fetch_row<T>(from, batch, head, first + i + kAhead, width);
    const T* source = row<T>(from, batch, head, first + i);
    for (int64_t c = 0; c < filled; c += kLanes) store_all(into + c, load(source + c, width - c) * scale);
  }
  memset(into, 0, static_cast<size_t>((rows - count) * filled) * sizeof *into);
}

// A transposed tile of keys, (wide, kKeys), by way of rows (kKeys, wide); zero past the last key.
template <class T>
inline void turn_rows(const Heads& from, int64_t batch, int64_t head, int64_t first, int64_t count, int64_t width,
                      int64_t filled, float* rows, float* into) {
  const int64_t turned = round_up(count, kLanes);
  copy_rows<T>(from, batch, head, first, count, kKeys, width, filled, 1.0f, rows);
  turn(rows, filled, into, kKeys, turned, filled);
  for (int64_t c = 0; turned < kKeys && c < filled; ++c) {
    memset(into + c * kKeys + turned, 0, static_cast<size_t>(kKeys - turned) * sizeof *into);
  }
}

// The offset of a row of a head in the contiguous output arrays of that many tokens.
inline int64_t row_of(const AttentionCall& call, int64_t tokens, int64_t batch, int64_t head, int64_t step) {
  return ((batch * tokens + step) * call.heads + head) * call.width;
}

template <class T>
inline void store_row(void* into, int64_t place, const float* row, float scale, int64_t width) {
  T* here = static_cast<T*>(into) + place;
  for (int64_t c = 0; c < width; c += kLanes) store(here + c, load_all(row + c) * scale, width - c);
}

inline float query_scale(const AttentionCall& call) {
  return kLog2E / __builtin_sqrtf(static_cast<float>(call.width));
}

// The running softmax of kSpan queries.
struct Running {
  float *queries, *acc, *sum, *top;  // (kSpan, wide | wide | kLanes | 1)
  float* weight;                     // (kQueries, kKeys)
};

inline void attend_tile(const AttentionCall& call, const Sight& sight, const Running& now, const float* keys,
                        const float* values, int64_t first) {
  Found found;
  vf top[kQueries];
  for (int i = 0; i < kQueries; ++i) top[i] = splat(kNone);
  for (int64_t key = 0; key < kKeys && first + key < call.keys; key += kBlock) {
    const Kind kind = sight.kind(first + key);
    if (kind == kHidden) continue;
    Block s = products(now.queries, keys + key, call.width, wide(call));
    if (kind == kPartly) hide(s, sight, first + key, kNone);
    float* into = now.weight + found.count * kBlock;
    for (int i = 0; i < kQueries; ++i) {
      top[i] = larger(top[i], larger(s.at[i][0], s.at[i][1]));
      store_all(into + i * kKeys, s.at[i][0]);
      store_all(into + i * kKeys + kLanes, s.at[i][1]);
    }
    found.key[found.count++] = key;
  }
  if (!found.count) return;
  const int64_t width = wide(call);
  for (int i = 0; i < kQueries; ++i) {
    const float highest = larger_of(now.top[i], fold(top[i], larger_of));
    const float base = highest == kNone ? 0.0f : highest;  // a query that has seen no key yet
    const vf shrink = share(splat(now.top[i] - base));
    now.top[i] = highest;
    vf sum = load_all(now.sum + i * kLanes) * shrink;
    float* weight = now.weight + i * kKeys;
    for (int64_t j = 0; j < found.count * kBlock; j += kLanes) {
      const vf part = share(load_all(weight + j) - base);
      sum += part;
      store_all(weight + j, part);
    }
    store_all(now.sum + i * kLanes, sum);
    for (int64_t c = 0; c < width; c += kLanes) {
      store_all(now.acc + i * width + c, load_all(now.acc + i * width + c) * shrink);
    }
  }
  gather_all(now.acc, now.weight, values, found, width);
}

inline int64_t tiled(int64_t keys) { return round_up(keys, kKeys); }

int64_t attention_forward_scratch(const AttentionCall& call) {
  const int64_t per_query = 2 * wide(call) + kLanes + 1;
  return 2 * tiled(call.keys) * wide(call) + kSpan * per_query + kQueries * kKeys;
}

template <class T>
void attention_forward_of(const AttentionCall& call, int64_t item, float* scratch) {
  const int64_t batch = item / call.heads, head = item % call.heads, width = call.width, filled = wide(call);
  const int64_t keys_end = tiled(call.keys);
  float* sums = scratch;
  float* keys = sums + kSpan * kLanes;
  float* values = keys + keys_end * filled;
  float* queries = values + keys_end * filled;
  float* acc = queries + kSpan * filled;
  float* weight = acc + kSpan * filled;
  float* top = weight + kQueries * kKeys;
  for (int64_t first = 0; first < call.keys; first += kKeys) {
    const int64_t count = at_most(call.keys - first, kKeys);
    turn_rows<T>(call.k, batch, head, first, count, width, filled, values + first * filled, keys + first * filled);
    copy_rows<T>(call.v, batch, head, first, count, kKeys, width, filled, 1.0f, values + first * filled);
  }
  for (int64_t start = 0; start < call.queries; start += kSpan) {
    const int64_t count = at_most(call.queries - start, kSpan), rows = round_up(count, kQueries);
    copy_rows<T>(call.q, batch, head, start, count, rows, width, filled, query_scale(call), queries);
    for (int64_t i = 0; i < rows * filled; ++i) acc[i] = 0.0f;
    for (int64_t i = 0; i < rows * kLanes; ++i) sums[i] = 0.0f;
    for (int64_t i = 0; i < rows; ++i) top[i] = kNone;
    for (int64_t first = 0; first < call.keys; first += kKeys) {
      for (int64_t i = 0; i < rows; i += kQueries) {
        const Running now{queries + i * filled, acc + i * filled, sums + i * kLanes, top + i, weight};
        attend_tile(call, Sight(call, batch, start + i), now, keys + first * filled, values + first * filled, first);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const float sum = fold(load_all(sums + i * kLanes), sum_of);
      const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;  // zeros for a query that sees no key
      store_row<T>(call.out, row_of(call, call.queries, batch, head, start + i), acc + i * filled, scale, width);
      call.log_sum[(batch * call.heads + head) * call.queries + start + i] =
          sum == 0.0f ? 0.0f : top[i] + __builtin_log2f(sum);
    }
  }
}

// The buffers of the gradients: for all queries of a head, and for one tile of keys.
struct Gradients {
  float *queries, *grad_out, *grad_queries, *log_sum, *dot;  // (queries, wide | 1)
  float *keys, *values, *grad_keys, *grad_values;            // (wide, kKeys)
  float *key_rows, *rows, *shares, *slopes;                  // (kKeys, wide), (kQueries, kKeys)
};

inline Gradients cut(const AttentionCall& call, float* scratch) {
  const int64_t rows = round_up(call.queries, kQueries), tile = wide(call) * kKeys;
  Gradients g;
  float** const places[] = {&g.queries, &g.grad_out, &g.grad_queries, &g.log_sum, &g.dot, &g.keys, &g.values,
                           &g.grad_keys, &g.grad_values, &g.key_rows, &g.rows, &g.shares, &g.slopes};
  const int64_t sizes[] = {rows * wide(call), rows * wide(call), rows * wide(call), rows, rows, tile, tile,
                           tile, tile, tile, tile, kQueries * kKeys, kQueries * kKeys};
  for (int i = 0; i < 13; ++i) {
    *places[i] = scratch;
    scratch += sizes[i];
  }
  return g;
}

int64_t attention_backward_scratch(const AttentionCall& call) {
  const int64_t rows = round_up(call.queries, kQueries), per_query = 3 * wide(call) + 2;
  return rows * per_query + kKeys * (6 * wide(call) + 2 * kQueries);
}

inline void differentiate_tile(const AttentionCall& call, const Sight& sight, const Gradients& g, int64_t query,
                               int64_t first) {
  const int64_t width = call.width, filled = wide(call);
  const float *queries = g.queries + query * filled, *grad_out = g.grad_out + query * filled;
  Found found;
  for (int64_t key = 0; key < kKeys && first + key < call.keys; key += kBlock) {
    const Kind kind = sight.kind(first + key);
    if (kind == kHidden) continue;
    Block part = products(queries, g.keys + key, width, filled);
    for (int i = 0; i < kQueries; ++i) {
      part.at[i][0] = share(part.at[i][0] - g.log_sum[query + i]);
      part.at[i][1] = share(part.at[i][1] - g.log_sum[query + i]);
    }
    if (kind == kPartly) hide(part, sight, first + key, 0.0f);
    Block slope = products(grad_out, g.values + key, width, filled);
    float *shares = g.shares + key, *slopes = g.slopes + found.count * kBlock;
    for (int i = 0; i < kQueries; ++i) {
      store_all(shares + i * kKeys, part.at[i][0]);
      store_all(shares + i * kKeys + kLanes, part.at[i][1]);
      store_all(slopes + i * kKeys, part.at[i][0] * (slope.at[i][0] - g.dot[query + i]));
      store_all(slopes + i * kKeys + kLanes, part.at[i][1] * (slope.at[i][1] - g.dot[query + i]));
    }
    add_products(g.grad_values + key, grad_out, shares, width, filled);
    add_products(g.grad_keys + key, queries, slopes, width, filled);
    found.key[found.count++] = key;
  }
  gather_all(g.grad_queries + query * filled, g.slopes, g.key_rows, found, filled);
}

// Writes the first `count` keys' gradients of a tile, by way of rows (kKeys, wide).
template <class T>
inline void write_tile(const AttentionCall& call, const float* tile, float scale, int64_t batch, int64_t head,
                       int64_t first, int64_t count, float* rows, void* grad) {
  turn(tile, kKeys, rows, wide(call), wide(call), round_up(count, kLanes));
  for (int64_t j = 0; j < count; ++j) {
    store_row<T>(grad, row_of(call, call.keys, batch, head, first + j), rows + j * wide(call), scale, call.width);
  }
}

template <class T>
void attention_backward_of(const AttentionCall& call, int64_t item, float* scratch) {
  const int64_t batch = item / call.heads, head = item % call.heads, width = call.width, filled = wide(call);
  const int64_t rows = round_up(call.queries, kQueries);
  const Gradients g = cut(call, scratch);
  copy_rows<T>(call.q, batch, head, 0, call.queries, rows, width, filled, query_scale(call), g.queries);
  copy_rows<T>(call.grad_out, batch, head, 0, call.queries, rows, width, filled, 1.0f, g.grad_out);
  for (int64_t i = 0; i < rows * filled; ++i) g.grad_queries[i] = 0.0f;
  for (int64_t i = 0; i < rows; ++i) {
    g.log_sum[i] = g.dot[i] = 0.0f;
    if (i >= call.queries) continue;
    const T* out = static_cast<const T*>(call.out) + row_of(call, call.queries, batch, head, i);
    vf dot = {};
    for (int64_t c = 0; c < width; c += kLanes) dot += load(out + c, width - c) * load_all(g.grad_out + i * filled + c);
    g.dot[i] = fold(dot, sum_of);
    g.log_sum[i] = call.log_sum[(batch * call.heads + head) * call.queries + i];
  }
  for (int64_t first = 0; first < call.keys; first += kKeys) {
    const int64_t count = at_most(call.keys - first, kKeys);
    turn_rows<T>(call.k, batch, head, first, count, width, filled, g.key_rows, g.keys);
    turn_rows<T>(call.v, batch, head, first, count, width, filled, g.rows, g.values);
    memset(g.grad_keys, 0, static_cast<size_t>(2 * filled * kKeys) * sizeof(float));  // and grad_values after it
    for (int64_t query = 0; query < rows; query += kQueries) {
      differentiate_tile(call, Sight(call, batch, query), g, query, first);
    }
    write_tile<T>(call, g.grad_keys, kLn2, batch, head, first, count, g.rows, call.grad_k);
    write_tile<T>(call, g.grad_values, 1.0f, batch, head, first, count, g.rows, call.grad_v);
  }
  const float scale = query_scale(call) * kLn2;
  for (int64_t i = 0; i < call.queries; ++i) {
    store_row<T>(call.grad_q, row_of(call, call.queries, batch, head, i), g.grad_queries + i * filled, scale, width);
  }
}

void attention_forward(const AttentionCall& call, int64_t item, float* scratch) {
  (call.half ? attention_forward_of<uint16_t> : attention_forward_of<float>)(call, item, scratch);
}

void attention_backward(const AttentionCall& call, int64_t item, float* scratch) {
  (call.half ? attention_backward_of<uint16_t> : attention_backward_of<float>)(call, item, scratch);
}

}  // namespace
