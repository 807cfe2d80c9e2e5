// SIMD-group functions. In exec mode the last lane to arrive runs a leader function for all lanes.
#pragma once

#include "barrier.h"
#include "maths.h"

#if defined(MSL_EXEC)

#define MSL_IN(T, l) (*(const T*)in[l])
#define MSL_OUT(T, l) (*(T*)out[l])
/// Runs its statement for every lane l of `mask`.
#define MSL_FOR_LANES(l)                                 \
  for (unsigned rest_ = mask; rest_; rest_ &= rest_ - 1) \
    if (const unsigned l = (unsigned)__builtin_ctz(rest_); true)

// Sums go through the xor butterfly when the whole SIMD-group takes part, as the hardware's do;
// in lane order otherwise.
#define MSL_REDUCTION(NAME, EXPRESSION)                                                           \
  template <class T>                                                                              \
  struct msl_reduce_##NAME {                                                                      \
    MSL_UNCHECKED MSL_NODEBUG static T combine(T a, T b) { return EXPRESSION; }                   \
    MSL_UNCHECKED MSL_NODEBUG static void run(unsigned mask, void* const* in, void* const* out) { \
      if (mask == 0xffffffffu) {                                                                  \
        T v[32], w[32];                                                                           \
        for (int l = 0; l < 32; ++l) v[l] = MSL_IN(T, l);                                         \
        for (int s = 16; s; s >>= 1) {                                                            \
          for (int l = 0; l < 32; ++l) w[l] = combine(v[l], v[l ^ s]);                            \
          for (int l = 0; l < 32; ++l) v[l] = w[l];                                               \
        }                                                                                         \
        for (int l = 0; l < 32; ++l) MSL_OUT(T, l) = v[l];                                        \
        return;                                                                                   \
      }                                                                                           \
      T all = MSL_IN(T, __builtin_ctz(mask));                                                     \
      const unsigned first = mask & -mask;                                                        \
      mask ^= first;                                                                              \
      MSL_FOR_LANES(l) all = combine(all, MSL_IN(T, l));                                          \
      mask ^= first;                                                                              \
      MSL_FOR_LANES(l) MSL_OUT(T, l) = all;                                                       \
    }                                                                                             \
  };                                                                                              \
  namespace metal {                                                                               \
  template <class T>                                                                              \
  MSL_INLINE T simd_##NAME(T v) {                                                                 \
    T r;                                                                                          \
    msl_collective(&msl_reduce_##NAME<T>::run, &v, &r, kMslReduceOp);                             \
    return r;                                                                                     \
  }                                                                                               \
  }
MSL_REDUCTION(sum, a + b)
MSL_REDUCTION(product, a* b)
MSL_REDUCTION(max, metal::max(a, b))
MSL_REDUCTION(min, metal::min(a, b))
MSL_REDUCTION(and, a& b)
MSL_REDUCTION(or, a | b)
MSL_REDUCTION(xor, a ^ b)
#undef MSL_REDUCTION

template <class T, bool kInclusive, bool kProduct>
struct msl_prefix {
  MSL_UNCHECKED MSL_NODEBUG static void run(unsigned mask, void* const* in, void* const* out) {
    T before = (T)(kProduct ? 1 : 0);
    MSL_FOR_LANES(l) {
      const T x = MSL_IN(T, l), after = kProduct ? before * x : before + x;
      MSL_OUT(T, l) = kInclusive ? after : before;
      before = after;
    }
  }
};

enum msl_shuffle_kind {
  kMslShuffle,
  kMslShuffleXor,
  kMslShuffleUp,
  kMslShuffleDown,
  kMslRotateUp,
  kMslRotateDown,
  kMslFillUp,
  kMslFillDown,
  kMslFirst,
};

template <class T>
struct msl_shuffle_args {
  T value;
  int lane;
  T fill;
};

template <class T, msl_shuffle_kind K>
struct msl_shuffler {
  MSL_UNCHECKED MSL_NODEBUG static void run(unsigned mask, void* const* in, void* const* out) {
    MSL_FOR_LANES(l) {
      const msl_shuffle_args<T>& args = MSL_IN(msl_shuffle_args<T>, l);
      int source = (int)l;
      switch (K) {
        case kMslShuffle:
          source = args.lane;
          break;
        case kMslShuffleXor:
          source = (int)l ^ args.lane;
          break;
        case kMslShuffleUp:
        case kMslFillUp:
          source = (int)l - args.lane;
          break;
        case kMslShuffleDown:
        case kMslFillDown:
          source = (int)l + args.lane;
          break;
        case kMslRotateUp:
          source = ((int)l - args.lane) & 31;
          break;
        case kMslRotateDown:
          source = ((int)l + args.lane) & 31;
          break;
        case kMslFirst:
          source = __builtin_ctz(mask);
          break;
      }
      T r;
      const bool outside = source < 0 || source > 31;
      if (outside && (K == kMslFillUp || K == kMslFillDown)) {
        r = args.fill;
      } else if (outside && (K == kMslShuffleUp || K == kMslShuffleDown)) {
        r = args.value;  // the lanes at the edge keep theirs
      } else if (outside || !(mask >> source & 1)) {
        __builtin_memset(&r, 0xff, sizeof(T));  // undefined
      } else {
        r = MSL_IN(msl_shuffle_args<T>, source).value;
      }
      MSL_OUT(T, l) = r;
    }
  }
};

template <msl_shuffle_kind K, class T>
MSL_INLINE T msl_shuffle(T value, int lane, T fill) {
  msl_shuffle_args<T> args{value, lane, fill};
  T r;
  msl_collective(&msl_shuffler<T, K>::run, &args, &r, kMslShuffleOp);
  return r;
}

enum msl_vote_kind { kMslBallot, kMslAll, kMslAny, kMslActive };

template <msl_vote_kind K>
struct msl_voter {
  MSL_UNCHECKED MSL_NODEBUG static void run(unsigned mask, void* const* in, void* const* out) {
    ulong votes = 0;
    MSL_FOR_LANES(l) if (MSL_IN(int, l)) votes |= 1ul << l;
    const ulong r = K == kMslBallot ? votes
                    : K == kMslAll  ? (ulong)(votes == mask)
                    : K == kMslAny  ? (ulong)(votes != 0)
                                    : (ulong)mask;
    MSL_FOR_LANES(l) MSL_OUT(ulong, l) = r;
  }
};

template <msl_vote_kind K>
MSL_INLINE ulong msl_vote(int predicate) {
  ulong r;
  msl_collective(&msl_voter<K>::run, &predicate, &r, kMslVoteOp);
  return r;
}

template <class T, bool kInclusive, bool kProduct>
MSL_INLINE T msl_prefix_of(T v) {
  T r;
  msl_collective(&msl_prefix<T, kInclusive, kProduct>::run, &v, &r, kMslPrefixOp);
  return r;
}

#define MSL_SIMD(SIGNATURE, ...) \
  MSL_INLINE SIGNATURE { return __VA_ARGS__; }

#else  // MSL_LINT: signatures only

#define MSL_SIMD(SIGNATURE, ...) SIGNATURE;
namespace metal {
template <class T>
T simd_sum(T v);
template <class T>
T simd_product(T v);
template <class T>
T simd_max(T v);
template <class T>
T simd_min(T v);
template <class T>
T simd_and(T v);
template <class T>
T simd_or(T v);
template <class T>
T simd_xor(T v);
}  // namespace metal

#endif

#define MSL_SIMD_TEMPLATE(SIGNATURE, ...) \
  template <class T>                      \
  MSL_SIMD(SIGNATURE, __VA_ARGS__)

namespace metal {

MSL_SIMD_TEMPLATE(T simd_prefix_inclusive_sum(T v), msl_prefix_of<T, true, false>(v))
MSL_SIMD_TEMPLATE(T simd_prefix_exclusive_sum(T v), msl_prefix_of<T, false, false>(v))
MSL_SIMD_TEMPLATE(T simd_prefix_inclusive_product(T v), msl_prefix_of<T, true, true>(v))
MSL_SIMD_TEMPLATE(T simd_prefix_exclusive_product(T v), msl_prefix_of<T, false, true>(v))
MSL_SIMD_TEMPLATE(T simd_broadcast_first(T v), msl_shuffle<kMslFirst>(v, 0, v))
MSL_SIMD_TEMPLATE(T simd_broadcast(T v, ushort lane), msl_shuffle<kMslShuffle>(v, lane, v))
MSL_SIMD_TEMPLATE(T simd_shuffle(T v, ushort lane), msl_shuffle<kMslShuffle>(v, lane, v))
MSL_SIMD_TEMPLATE(T simd_shuffle_xor(T v, ushort mask), msl_shuffle<kMslShuffleXor>(v, mask, v))
MSL_SIMD_TEMPLATE(T simd_shuffle_up(T v, ushort d), msl_shuffle<kMslShuffleUp>(v, d, v))
MSL_SIMD_TEMPLATE(T simd_shuffle_down(T v, ushort d), msl_shuffle<kMslShuffleDown>(v, d, v))
MSL_SIMD_TEMPLATE(T simd_shuffle_rotate_up(T v, ushort d), msl_shuffle<kMslRotateUp>(v, d, v))
MSL_SIMD_TEMPLATE(T simd_shuffle_rotate_down(T v, ushort d), msl_shuffle<kMslRotateDown>(v, d, v))
MSL_SIMD_TEMPLATE(
    T simd_shuffle_and_fill_up(T v, T fill, ushort d), msl_shuffle<kMslFillUp>(v, d, fill))
MSL_SIMD_TEMPLATE(
    T simd_shuffle_and_fill_down(T v, T fill, ushort d), msl_shuffle<kMslFillDown>(v, d, fill))

struct simd_vote {
  ulong bits;
  MSL_NODEBUG explicit operator ulong() const { return bits; }
  MSL_NODEBUG bool all() const { return bits == 0xffffffffu; }
  MSL_NODEBUG bool any() const { return bits != 0; }
};
MSL_SIMD(simd_vote simd_ballot(bool p), simd_vote{msl_vote<kMslBallot>(p)})
MSL_SIMD(simd_vote simd_active_threads_mask(), simd_vote{msl_vote<kMslActive>(1)})
MSL_SIMD(bool simd_all(bool p), msl_vote<kMslAll>(p) != 0)
MSL_SIMD(bool simd_any(bool p), msl_vote<kMslAny>(p) != 0)
MSL_SIMD(bool simd_is_first(), simd_broadcast_first((int)msl_lane()) == (int)msl_lane())

#undef MSL_SIMD_TEMPLATE
#undef MSL_SIMD

}  // namespace metal
