// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_COPY_PORTABLE_HPP
#define KOKKOSMX_SRC_ATOMS_COPY_PORTABLE_HPP

/// \file portable.hpp
/// The generic atom of the copying kernels, for any execution space. All others must match it.

#include <KokkosMX/Types.hpp>

#include "../../operand.hpp"
#include "../atom_function.hpp"

#include <cstdint>
#include <cstring>

namespace KokkosMX::Impl {

/// Groups of codes that a host's atom moves: `count` of them, a step apart. Plain ones are four
/// blocks of 16 bytes, from_block or to_block apart; woven ones 64 bytes.
struct CopyGroups {
  const std::uint8_t* from;
  std::int64_t from_block, from_step;
  std::uint8_t* to;
  std::int64_t to_block, to_step;
  std::int64_t count;
};

/// Words of 4 scales that a host's atom moves: of 16 rows, and so many of each.
struct CopyWords {
  const std::uint8_t* from;
  std::int64_t from_row, from_step;
  std::uint8_t* to;
  std::int64_t to_row, to_step;
  std::int64_t count;
};

struct PortableCopyAtom {
  static constexpr const char* name = "portable";

  /// Four blocks one after the other to a group whose blocks take turns, and back. By way of
  /// numbers of 2 and 4 bytes, the first the lowest: loops that compilers vectorize.
  KOKKOS_INLINE_FUNCTION static void weave(const std::uint8_t (&in)[group_bytes],
                                           std::uint8_t (&out)[group_bytes]) {
    std::uint16_t low[block_bytes], high[block_bytes];
    std::uint32_t all[block_bytes];
    for (int j = 0; j < block_bytes; ++j) {
      low[j] = static_cast<std::uint16_t>(in[j] | (in[16 + j] << 8));
    }
    for (int j = 0; j < block_bytes; ++j) {
      high[j] = static_cast<std::uint16_t>(in[32 + j] | (in[48 + j] << 8));
    }
    for (int j = 0; j < block_bytes; ++j) {
      all[j] = low[j] | (static_cast<std::uint32_t>(high[j]) << 16);
    }
    std::memcpy(out, all, group_bytes);
  }
  KOKKOS_INLINE_FUNCTION static void unweave(const std::uint8_t (&in)[group_bytes],
                                             std::uint8_t (&out)[group_bytes]) {
    std::uint16_t low[block_bytes], high[block_bytes];
    std::uint32_t all[block_bytes];
    std::memcpy(all, in, group_bytes);
    for (int j = 0; j < block_bytes; ++j) low[j] = static_cast<std::uint16_t>(all[j]);
    for (int j = 0; j < block_bytes; ++j) high[j] = static_cast<std::uint16_t>(all[j] >> 16);
    for (int j = 0; j < block_bytes; ++j) out[j] = static_cast<std::uint8_t>(low[j]);
    for (int j = 0; j < block_bytes; ++j) out[16 + j] = static_cast<std::uint8_t>(low[j] >> 8);
    for (int j = 0; j < block_bytes; ++j) out[32 + j] = static_cast<std::uint8_t>(high[j]);
    for (int j = 0; j < block_bytes; ++j) out[48 + j] = static_cast<std::uint8_t>(high[j] >> 8);
  }

  /// Moves groups, weaving or unweaving them where only one side is woven; other atoms have no more
  /// than that.
  template <bool FromWoven, bool ToWoven>
  KOKKOS_INLINE_FUNCTION static void move(const CopyGroups& groups) {
    // For all that a compiler knows, bytes could be members.
    const std::uint8_t* source = groups.from;
    std::uint8_t* target = groups.to;
    const std::int64_t from_block = groups.from_block, to_block = groups.to_block;
    const std::int64_t from_step = groups.from_step, to_step = groups.to_step;
    const std::int64_t count = groups.count;
    for (std::int64_t n = 0; n < count; ++n, source += from_step, target += to_step) {
      std::uint8_t in[group_bytes], out[group_bytes];
      if constexpr (FromWoven) {
        std::memcpy(in, source, group_bytes);
      } else {
        for (int b = 0; b < 4; ++b) {
          std::memcpy(in + b * block_bytes, source + b * from_block, block_bytes);
        }
      }
      if constexpr (FromWoven == ToWoven) {
        std::memcpy(out, in, group_bytes);
      } else if constexpr (ToWoven) {
        weave(in, out);
      } else {
        unweave(in, out);
      }
      if constexpr (ToWoven) {
        std::memcpy(target, out, group_bytes);
      } else {
        for (int b = 0; b < 4; ++b) {
          std::memcpy(target + b * to_block, out + b * block_bytes, block_bytes);
        }
      }
    }
  }

  /// From 32 rows of scales, `stride` apart, to a tile of Tile32x8, or back. Returns how many of
  /// the columns it has moved: the first ones, in eights.
  template <bool ToTile>
  KOKKOS_INLINE_FUNCTION static std::int64_t move_scales(std::uint8_t*, std::int64_t, std::uint8_t*,
                                                         std::int64_t) {
    return 0;
  }

  /// Moves words between rows whose words lie together and columns whose words do. Returns how many
  /// of each row it has moved: the first ones.
  KOKKOS_INLINE_FUNCTION static std::int64_t move_words(const CopyWords&) { return 0; }
};

}  // namespace KokkosMX::Impl

#endif
