// Every line marked BAD must be refused by Apple's compiler (our reading of the language rules); the
// lint must refuse it too. Each stands alone.
// clang-format off
#include <metal_stdlib>
using namespace metal;
struct blk { half d; uchar qs[16]; int get() const { return qs[0]; } };
void b01(device float *a, threadgroup float *b) { a = b; }                          // BAD address space mix
float *b02(device float *a) { return (float *)a; }                                  // BAD unqualified pointer
void b03f(float *a) { a[0] = 1; }                                                   // BAD unqualified pointer parameter
void b03(device float *a) { b03f(a); }                                              // BAD device -> thread
void b04() { double x = 1; (void)x; }                                               // BAD double
int b05(int n) { return n ? b05(n - 1) : 0; }                                       // BAD recursion
int b06 = 3;                                                                        // BAD non-constant global
void b07(device const blk *b, device int *o) { o[0] = b->get(); }                   // BAD method without device qualifier
struct V { virtual int f(); };                                                      // BAD virtual
void b08() { throw 1; }                                                             // BAD exceptions
int b09(int n) { int a[n]; a[0] = 1; return a[0]; }                                 // BAD VLA
void b10() { int *p = new int; (void)p; }                                           // BAD new
int b11() { static int q; return q++; }                                             // BAD static local
half4 b12(float4 a) { return a; }                                                   // BAD implicit vector conversion
float4 b13(float3 a) { return float4(a); }                                          // BAD vector constructor arity
float b14(float a, half b) { return max(a, b); }                                    // BAD ambiguous overload
float b15(float4 v) { float4 w = v; thread float *p = &w.x; return *p; }            // BAD address of a vector element
int b16(int a, uint b) { return min(a, b); }                                        // BAD ambiguous overload
kernel void b17(device float *a [[buffer(0)]], uint i) { a[i] = 0; }                // BAD kernel input without attribute
float b18(device const float *a) { device float *p = a; return p[0]; }              // BAD drops const
void b19() { std::sort(0, 0); }                                                     // BAD std::
void b20(constant float &c) { c = 1; }                                              // BAD write to constant
int b21(int n) { goto l; l: return n; }                                             // BAD goto (spec forbids)
void b22(threadgroup float *t) { threadgroup float local[4]; local[0] = t[0]; }     // BAD threadgroup variable outside a kernel
int b23(void) { return sizeof(size_t) + __builtin_popcount(3) + asm_missing(1); }   // BAD unknown function
float b24(device const float *const *t) { return t[0][0]; }                         // BAD table of addresses without address space
float b25(threadgroup float (&tile)[4]) { return tile[0]; }
float b26(device float *x) { float tile[4]; return b25(tile) + x[0]; }              // BAD thread array for a threadgroup one
kernel void b27(uint2 g [[threadgroup_position_in_grid]], uint n [[threads_per_threadgroup]]) {}// BAD scalar and vector positions
kernel void b28(uint2 g [[threads_per_grid]], ushort3 t [[thread_position_in_threadgroup]]) {}// BAD positions of two sizes
