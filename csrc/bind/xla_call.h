// SPDX-License-Identifier: Apache-2.0
// What a call from XLA's runtime looks like in memory: of its foreign function interface, version 0 of the
// binary interface, those structs that a handler of dense arrays on a processor meets. Declared here
// so that one build serves every version of JAX whose runtime speaks that version, with no headers of
// its at hand; sizes are checked as a call arrives.
//
// Source: the interface as openxla/xla documents it, xla/ffi/api/c_api.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rnnkern::xla {

inline constexpr int kMajorVersion = 0;

struct Extension {
  std::size_t size;
  std::int32_t type;  // 1: the runtime asks which version the handler speaks
  Extension* next;
};
inline constexpr std::int32_t kAsksForMetadata = 1;

struct Version {
  std::size_t size;
  Extension* extensions;
  int major, minor;
};

struct Metadata {
  std::size_t size;
  Version version;
  std::uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

enum class DataType : std::int32_t { s32 = 4, s64 = 5, f32 = 11, f64 = 12 };

struct Buffer {
  std::size_t size;
  Extension* extensions;
  DataType dtype;
  void* data;
  std::int64_t rank;
  std::int64_t* dims;
};

struct Text {
  const char* data;
  std::size_t size;
};

struct Scalar {
  DataType dtype;
  void* value;
};
inline constexpr std::int32_t kIsScalar = 3;  // among the types of attributes

struct Buffers {
  std::size_t size;
  Extension* extensions;
  std::int64_t count;
  std::int32_t* types;
  Buffer** buffers;
};

struct Attributes {
  std::size_t size;
  Extension* extensions;
  std::int64_t count;
  std::int32_t* types;
  Text** names;
  Scalar** values;
};

struct Error;  // the runtime's own

struct ErrorArguments {
  std::size_t size;
  Extension* extensions;
  const char* message;
  std::int32_t code;
};
inline constexpr std::int32_t kInvalidArgument = 3, kInternal = 13;

struct Api {
  std::size_t size;
  Extension* extensions;
  Version version;
  void* internal;
  Error* (*make_error)(ErrorArguments*);
};

struct Call {
  std::size_t size;
  Extension* extensions;
  const Api* api;
  void* context;
  std::int32_t stage;
  Buffers arguments, results;
  Attributes attributes;
};

using Handler = Error*(Call*);

}  // namespace rnnkern::xla
