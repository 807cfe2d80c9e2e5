// Scalars, vectors and the traits that the other headers need. Vectors are clang's ext_vector_type,
// as in Apple's front end: swizzles, scalar widening and the ban on implicit conversions between
// vectors come with it.
#pragma once

#include "config.h"

#if !defined(MSL_LINT)
using half = _Float16;
using size_t = unsigned long;
using ptrdiff_t = long;
using uintptr_t = unsigned long;
#endif
using bfloat = __bf16;
using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long;
using uint8_t = uchar;
using uint16_t = ushort;
using uint32_t = uint;
using uint64_t = ulong;

template <class T, int N>
using msl_vec = T __attribute__((ext_vector_type(N)));

#define MSL_VECTORS(T)                                \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
MSL_VECTORS(float)
MSL_VECTORS(half)
MSL_VECTORS(bfloat)
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
#if !defined(MSL_LINT)
MSL_VECTORS(bool)
#endif
#undef MSL_VECTORS

#undef INFINITY
#undef NAN
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.1920929e-7f
#define HALF_MAX ((half)65504.0f)
#define MAXHALF ((half)65504.0f)
#define MAXFLOAT 3.402823466e+38f
#define INT_MIN (-2147483647 - 1)
#define INT_MAX 2147483647
#define UINT_MAX 4294967295u
#undef M_PI_F
#define M_PI_F 3.14159265358979323846f

namespace metal {
template <class E, int N>
struct msl_packed;  // composite.h
}

// ---- traits ----

/// Element type and length of a vector; a scalar has length 1.
template <class T>
struct msl_traits {
  MSL_STATIC_CONST int n = 1;
  using element = T;
};
template <class T, int N>
struct msl_traits<T __attribute__((ext_vector_type(N)))> {
  MSL_STATIC_CONST int n = N;
  using element = T;
};
template <class T, int N>
struct msl_traits<metal::msl_packed<T, N>> {
  MSL_STATIC_CONST int n = N;
  using element = T;
};

namespace metal {

template <class T, int N>
using vec = msl_vec<T, N>;

template <class T, T V>
struct integral_constant {
  MSL_STATIC_CONST T value = V;
  using type = integral_constant;
};
template <bool B>
using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
MSL_NAMESPACE_CONST bool is_same_v = is_same<A, B>::value;

template <bool C, class A, class B>
struct conditional {
  using type = A;
};
template <class A, class B>
struct conditional<false, A, B> {
  using type = B;
};
template <bool C, class A, class B>
using conditional_t = typename conditional<C, A, B>::type;

template <bool C, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool C, class T = void>
using enable_if_t = typename enable_if<C, T>::type;

template <class T>
struct remove_reference {
  using type = T;
};
template <class T>
struct remove_reference<T&> {
  using type = T;
};
template <class T>
struct remove_reference<T&&> {
  using type = T;
};
template <class T>
using remove_reference_t = typename remove_reference<T>::type;

template <class T>
struct is_floating_point
    : bool_constant<is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>> {};
template <class T>
MSL_NAMESPACE_CONST bool is_floating_point_v = is_floating_point<T>::value;

template <class T>
struct numeric_limits;
#define MSL_INTEGER_LIMITS(T, LOW, HIGH)                        \
  template <>                                                   \
  struct numeric_limits<T> {                                    \
    static constexpr T max() { return static_cast<T>(HIGH); }   \
    static constexpr T lowest() { return static_cast<T>(LOW); } \
    static constexpr T min() { return static_cast<T>(LOW); }    \
  };
MSL_INTEGER_LIMITS(char, -128, 127)
MSL_INTEGER_LIMITS(uchar, 0, 255)
MSL_INTEGER_LIMITS(short, -32768, 32767)
MSL_INTEGER_LIMITS(ushort, 0, 65535)
MSL_INTEGER_LIMITS(int, INT_MIN, INT_MAX)
MSL_INTEGER_LIMITS(uint, 0, UINT_MAX)
MSL_INTEGER_LIMITS(long, (-9223372036854775807L - 1), 9223372036854775807L)
MSL_INTEGER_LIMITS(ulong, 0, 18446744073709551615ul)
#undef MSL_INTEGER_LIMITS
#define MSL_FLOAT_LIMITS(T, SMALLEST, HIGH)                            \
  template <>                                                          \
  struct numeric_limits<T> {                                           \
    static constexpr T max() { return static_cast<T>(HIGH); }          \
    static constexpr T lowest() { return static_cast<T>(-(HIGH)); }    \
    static constexpr T min() { return static_cast<T>(SMALLEST); }      \
    static constexpr T infinity() { return static_cast<T>(INFINITY); } \
    static constexpr T quiet_NaN() { return static_cast<T>(NAN); }     \
  };
MSL_FLOAT_LIMITS(float, FLT_MIN, FLT_MAX)
MSL_FLOAT_LIMITS(half, 6.103515625e-5f, 65504.0f)
MSL_FLOAT_LIMITS(bfloat, FLT_MIN, 3.3895314e38f)
#undef MSL_FLOAT_LIMITS

}  // namespace metal
