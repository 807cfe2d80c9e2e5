// Wrong uses of Metal, one a case: tests/metal/test_device.py expects a report for each. Compiled
// without ARC, since some of them are about counting references.
#import <Metal/Metal.h>

#include <cstring>
#include <vector>

#include "control.h"

extern "C" void objc_release(id object);

@protocol Counted
- (instancetype)retain;
- (void)release;
@end
// Declarations that Metal does not have.
@protocol WrongTypes
- (void)setBytes:(const void *)bytes length:(float)length atIndex:(NSUInteger)index;
@end
@protocol Unknown
- (void)setTessellationFactorScale:(float)scale;
@end

namespace {

const char *const kSource = R"(
#include <metal_stdlib>
using namespace metal;
kernel void copy(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                 uint i [[thread_position_in_grid]]) { y[i] = x[i]; }
kernel void follow(device const ulong* table [[buffer(0)]], device float* y [[buffer(1)]],
                   uint i [[thread_position_in_grid]]) {
  y[i] = ((device const float*)table[0])[i];
}
kernel void store(device const ulong* table [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  ((device float*)table[0])[i] = 1;
}
)";
constexpr NSUInteger kThreads = 32, kBytes = kThreads * sizeof(float);

struct Bench {
  Bench() {
    device = MTLCreateSystemDefaultDevice();
    queue = [device newCommandQueue];
    NSError *error = nil;
    library = [device newLibraryWithSource:[NSString stringWithUTF8String:kSource]
                                   options:[options() init]
                                     error:&error];
    copy = pipeline(@"copy");
    follow = pipeline(@"follow");
    store = pipeline(@"store");
    for (id<MTLBuffer> &b : buffers) b = new_buffer();
  }
  ~Bench() {
    for (id<MTLBuffer> b : buffers) release(b);
    release(copy);
    release(follow);
    release(store);
    release(library);
    release(queue);
    release(device);
  }
  static void release(id object) { [(id<Counted>)object release]; }
  static MTLCompileOptions *options() {
    MTLCompileOptions *made = [MTLCompileOptions alloc];
    made.languageVersion = MTLLanguageVersion3_1;
    made.fastMathEnabled = NO;
    return made;
  }
  id<MTLBuffer> new_buffer() {
    return [device newBufferWithLength:kBytes options:MTLResourceHazardTrackingModeUntracked];
  }
  id<MTLComputePipelineState> pipeline(NSString *name) {
    MTLFunctionConstantValues *values = [[MTLFunctionConstantValues alloc] init];
    MTLComputePipelineDescriptor *descriptor = [[MTLComputePipelineDescriptor alloc] init];
    id<MTLFunction> function = [library newFunctionWithName:name constantValues:values error:nil];
    descriptor.computeFunction = function;
    id<MTLComputePipelineState> made =
        [device newComputePipelineStateWithDescriptor:descriptor
                                              options:MTLPipelineOptionNone
                                           reflection:nil
                                                error:nil];
    for (id object : {(id)values, (id)descriptor, (id)function}) release(object);
    return made;
  }
  id<MTLCommandBuffer> commands() {
    if (!commands_) commands_ = [queue commandBuffer];
    return commands_;
  }
  id<MTLComputeCommandEncoder> encoder() {
    return [commands() computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
  }
  void dispatch(
      id<MTLComputeCommandEncoder> e, NSUInteger groups = 1, NSUInteger threads = kThreads) {
    [e dispatchThreadgroups:MTLSizeMake(groups, 1, 1)
        threadsPerThreadgroup:MTLSizeMake(threads, 1, 1)];
  }
  /// Copies one buffer to another.
  void copies(id<MTLComputeCommandEncoder> e, int from, int to) {
    [e setComputePipelineState:copy];
    [e setBuffer:buffers[from] offset:0 atIndex:0];
    [e setBuffer:buffers[to] offset:0 atIndex:1];
    dispatch(e);
  }
  /// Runs a kernel that finds the third buffer through an address in the first.
  void reaches(id<MTLComputeCommandEncoder> e, id<MTLComputePipelineState> kernel) {
    *static_cast<uint64_t *>(buffers[0].contents) = buffers[2].gpuAddress;
    [e setComputePipelineState:kernel];
    [e setBuffer:buffers[0] offset:0 atIndex:0];
    [e setBuffer:buffers[1] offset:0 atIndex:1];
    dispatch(e);
    [e endEncoding];
    finish();
  }
  void finish() {
    [commands() commit];
    [commands() waitUntilCompleted];
    commands_ = nil;
  }

  id<MTLDevice> device;
  id<MTLCommandQueue> queue;
  id<MTLLibrary> library;
  id<MTLComputePipelineState> copy, follow, store;
  id<MTLBuffer> buffers[3];
  id<MTLCommandBuffer> commands_ = nil;
};

struct Case {
  const char *name;
  void (*run)(Bench &);
};

const Case kCases[] = {
    {"nothing wrong",
     [](Bench &b) {
       id<MTLFence> fence = [b.device newFence];
       for (int i = 0; i < 2; i++) {
         auto e = b.encoder();
         [e waitForFence:fence];
         b.copies(e, 0, 1);
         [e memoryBarrierWithScope:MTLBarrierScopeBuffers];
         b.copies(e, 1, 2);
         [e updateFence:fence];
         [e endEncoding];
         b.finish();
       }
       b.release(fence);
     }},
    {"dispatch without pipeline",
     [](Bench &b) {
       auto e = b.encoder();
       b.dispatch(e);
       [e endEncoding];
     }},
    {"commit with open encoder",
     [](Bench &b) {
       auto e = b.encoder();
       [b.commands() commit];
       [e endEncoding];
     }},
    {"encoder never ended", [](Bench &b) { b.encoder(); }},
    {"encoder ended twice",
     [](Bench &b) {
       auto e = b.encoder();
       [e endEncoding];
       [e endEncoding];
     }},
    {"dispatch after the end",
     [](Bench &b) {
       auto e = b.encoder();
       [e endEncoding];
       b.copies(e, 0, 1);
     }},
    {"committed twice",
     [](Bench &b) {
       [b.commands() commit];
       [b.commands() commit];
       [b.commands() waitUntilCompleted];
     }},
    {"encoder on a committed command buffer",
     [](Bench &b) {
       [b.commands() commit];
       b.encoder();
       [b.commands() waitUntilCompleted];
     }},
    {"second open encoder",
     [](Bench &b) {
       auto e = b.encoder();
       b.encoder();
       [e endEncoding];
     }},
    {"wait before commit", [](Bench &b) { [b.commands() waitUntilCompleted]; }},
    {"setBytes too long",
     [](Bench &b) {
       auto e = b.encoder();
       const std::vector<char> bytes(4097);
       [e setBytes:bytes.data() length:4097 atIndex:0];
       [e endEncoding];
     }},
    {"no-copy pointer",
     [](Bench &b) {
       [b.device newBufferWithBytesNoCopy:(char *)b.buffers[0].contents + 4096
                                   length:16384
                                  options:MTLResourceStorageModeShared
                              deallocator:nil];
     }},
    {"no-copy length",
     [](Bench &b) {
       [b.device newBufferWithBytesNoCopy:b.buffers[0].contents
                                   length:4096
                                  options:MTLResourceStorageModeShared
                              deallocator:nil];
     }},
    {"empty buffer",
     [](Bench &b) { [b.device newBufferWithLength:0 options:MTLResourceStorageModeShared]; }},
    {"offset past the end",
     [](Bench &b) {
       auto e = b.encoder();
       [e setBuffer:b.buffers[0] offset:kBytes atIndex:0];
       [e endEncoding];
     }},
    {"offset not aligned",
     [](Bench &b) {
       auto e = b.encoder();
       [e setBuffer:b.buffers[0] offset:2 atIndex:0];
       [e endEncoding];
     }},
    {"offset without buffer",
     [](Bench &b) {
       auto e = b.encoder();
       [e setBufferOffset:0 atIndex:3];
       [e endEncoding];
     }},
    {"threadgroup length not a multiple of 16",
     [](Bench &b) {
       auto e = b.encoder();
       [e setThreadgroupMemoryLength:24 atIndex:0];
       [e endEncoding];
     }},
    {"threadgroup memory too long",
     [](Bench &b) {
       auto e = b.encoder();
       [e setThreadgroupMemoryLength:32784 atIndex:0];
       [e endEncoding];
     }},
    {"too many threads",
     [](Bench &b) {
       auto e = b.encoder();
       [e setComputePipelineState:b.copy];
       b.dispatch(e, 1, 1025);
       [e endEncoding];
     }},
    {"empty grid",
     [](Bench &b) {
       auto e = b.encoder();
       [e setComputePipelineState:b.copy];
       b.dispatch(e, 0);
       [e endEncoding];
     }},
    {"unbound argument",
     [](Bench &b) {
       auto e = b.encoder();
       [e setComputePipelineState:b.copy];
       [e setBuffer:b.buffers[0] offset:0 atIndex:0];
       b.dispatch(e);
       [e endEncoding];
       b.finish();
     }},
    {"message to a released object",
     [](Bench &b) {
       id<MTLBuffer> buffer = b.new_buffer();
       b.release(buffer);
       (void)[buffer length];
     }},
    {"over-released",
     [](Bench &b) {
       id<MTLBuffer> buffer = b.new_buffer();
       objc_release(buffer);
       objc_release(buffer);
     }},
    {"residency before commit",
     [](Bench &b) {
       id<MTLResidencySet> set =
           [b.device newResidencySetWithDescriptor:[[MTLResidencySetDescriptor alloc] init]
                                             error:nil];
       [set addAllocation:b.buffers[0]];
       [set requestResidency];
       b.release(set);
     }},
    {"removed from a set that it is not in",
     [](Bench &b) {
       id<MTLResidencySet> set =
           [b.device newResidencySetWithDescriptor:[[MTLResidencySetDescriptor alloc] init]
                                             error:nil];
       [set removeAllocation:b.buffers[0]];
       b.release(set);
     }},
    {"wrong type encoding",
     [](Bench &b) {
       auto e = b.encoder();
       [(id<WrongTypes>)e setBytes:"x" length:1.0f atIndex:0];
       [e endEncoding];
     }},
    {"unknown selector",
     [](Bench &b) {
       auto e = b.encoder();
       [(id<Unknown>)e setTessellationFactorScale:1];
       [e endEncoding];
     }},
    {"fast math",
     [](Bench &b) {
       [b.device newLibraryWithSource:[NSString stringWithUTF8String:kSource]
                              options:[[MTLCompileOptions alloc] init]
                                error:nil];
     }},
    {"freed in flight",
     [](Bench &b) {
       fake_metal_set("hold", 1);
       b.commands_ = [b.queue commandBufferWithUnretainedReferences];
       auto e = b.encoder();
       b.copies(e, 0, 1);
       [e endEncoding];
       [b.commands() commit];
       b.release(b.buffers[1]);
       fake_metal_set("hold", 0);
       [b.commands() waitUntilCompleted];
       b.buffers[1] = b.new_buffer();
     }},
    {"missing barrier",
     [](Bench &b) {
       auto e = b.encoder();
       b.copies(e, 0, 1);
       b.copies(e, 1, 2);
       [e endEncoding];
       b.finish();
     }},
    {"missing fence",
     [](Bench &b) {
       for (int i = 0; i < 2; i++) {
         auto e = b.encoder();
         b.copies(e, i, i + 1);
         [e endEncoding];
         b.finish();
       }
     }},
    {"fence awaited after its update",
     [](Bench &b) {
       id<MTLFence> fence = [b.device newFence];
       auto e = b.encoder();
       [e updateFence:fence];
       [e waitForFence:fence];
       [e endEncoding];
       b.release(fence);
     }},
    {"indirect read",
     [](Bench &b) {
       auto e = b.encoder();
       [e useResource:b.buffers[2] usage:MTLResourceUsageRead];
       b.reaches(e, b.follow);
     }},
    {"indirect read not announced", [](Bench &b) { b.reaches(b.encoder(), b.follow); }},
    {"indirect write announced as read",
     [](Bench &b) {
       auto e = b.encoder();
       [e useResource:b.buffers[2] usage:MTLResourceUsageRead];
       b.reaches(e, b.store);
     }},
};

}  // namespace

extern "C" {
#pragma GCC visibility push(default)

/// The name of the i-th case, or null.
const char *misuse_name(unsigned i) {
  return i < sizeof(kCases) / sizeof(kCases[0]) ? kCases[i].name : nullptr;
}

void misuse_run(unsigned i) {
  @autoreleasepool {
    Bench bench;
    kCases[i].run(bench);
  }
}

/// The case that needs a thread without an autorelease pool.
void misuse_without_pool() {
  id<MTLDevice> device = MTLCreateSystemDefaultDevice();
  id<MTLCommandQueue> queue = [device newCommandQueue];
  (void)[queue commandBuffer];
}
#pragma GCC visibility pop
}
