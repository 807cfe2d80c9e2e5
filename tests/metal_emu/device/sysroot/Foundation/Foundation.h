// The few Foundation declarations that device.mm uses, for compiling it without Apple's SDK. Names,
// types and values are those of Apple's public interface; tests/metal/test_crosslink.py compares the
// selectors with a list of known ones, and the simulated device compares type encodings at run time.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef bool BOOL;
typedef long NSInteger;
typedef unsigned long NSUInteger;
typedef struct _NSRange {
  NSUInteger location, length;
} NSRange;

#define YES true
#define NO false
#define nil nullptr
#define NS_RETURNS_RETAINED __attribute__((ns_returns_retained))
#ifdef __APPLE__
#include <os/availability.h>
#else
#define API_AVAILABLE(...)
#endif

@class NSString;

@protocol NSObject
- (BOOL)respondsToSelector:(SEL)selector;
@end

__attribute__((objc_root_class))
@interface NSObject <NSObject>
+ (instancetype)alloc;
+ (instancetype)new;
- (instancetype)init;
@end

@interface NSString : NSObject
+ (instancetype)stringWithUTF8String:(const char *)text;
@property(readonly) const char *UTF8String;
@end

@interface NSConstantString : NSString
@end

@interface NSError : NSObject
@property(readonly) NSInteger code;
@property(readonly, copy) NSString *localizedDescription;
@end
