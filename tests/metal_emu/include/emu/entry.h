// Glue between the runtime and rewritten kernels: takes a kernel's arguments from msl_context.
// Exec mode only; the rewriter adds one msl_call per kernel at the end of the text.
#pragma once

#include "barrier.h"

// One copy of the code: not one in the table's functions as well.
#define MSL_KERNEL static __attribute__((noinline))

template <class P>
struct msl_argument {  // built-in inputs, scalar or vector
  MSL_NODEBUG static P get(msl_context* context, msl_param param) {
    const unsigned* u = context->inputs[param.index];
    if constexpr (msl_traits<P>::n == 1) {
      return (P)u[0];
    } else {
      P r;
      for (int i = 0; i < msl_traits<P>::n; ++i) r[i] = (typename msl_traits<P>::element)u[i];
      return r;
    }
  }
};
MSL_INLINE void* msl_memory(msl_context* context, msl_param param) {
  return param.kind == kMslBuffer ? context->buffers[param.index]
                                  : context->threadgroup[param.index];
}
template <class P>
struct msl_argument<P*> {
  MSL_NODEBUG static P* get(msl_context* context, msl_param param) {
    return (P*)msl_memory(context, param);
  }
};
template <class P>
struct msl_argument<P&> {
  MSL_NODEBUG static P& get(msl_context* context, msl_param param) {
    return *(P*)msl_memory(context, param);
  }
};

template <int... I>
struct msl_indices {};
template <int N, int... I>
struct msl_make_indices : msl_make_indices<N - 1, N - 1, I...> {};
template <int... I>
struct msl_make_indices<0, I...> {
  using type = msl_indices<I...>;
};

template <const msl_param* kParams, class... P, int... I>
MSL_INLINE void msl_call_with(void (*kernel)(P...), msl_context* context, msl_indices<I...>) {
  kernel(msl_argument<P>::get(context, kParams[I])...);
}
template <const msl_param* kParams, class... P>
MSL_INLINE void msl_call(void (*kernel)(P...), msl_context* context) {
  msl_call_with<kParams>(kernel, context, typename msl_make_indices<sizeof...(P)>::type());
}
