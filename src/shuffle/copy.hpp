// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_SHUFFLE_COPY_HPP
#define KOKKOSMX_SRC_SHUFFLE_COPY_HPP

/// \file copy.hpp
/// The kernels that copy codes, scales and summaries from any layout to any, for arguments already
/// checked.

#include <KokkosMX/Types.hpp>

#include "../launch.hpp"
#include "../operand.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <string>

namespace KokkosMX::Impl {

/// Threads of a team, on devices.
inline constexpr int copy_threads = 128;

/// Items are groups of 16 rows of the output, the height of a tile of codes; what lies outside the
/// matrix is padding, written with 0. A thread moves a column of blocks.
struct CopyCodes {
  CodesMap from, to;
  std::int64_t rows, blocks, groups;
  struct Scratch {};

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const std::int64_t batch = item / groups;
    const std::int64_t first = item % groups * 16;
    const std::int64_t end = to.rows - first < 16 ? to.rows : first + 16;
    for_each(group, to.blocks, [&](std::int64_t block) {
      for (std::int64_t row = first; row < end; ++row) {
        const bool inside = row < rows && block < blocks;
        const std::uint8_t* source = inside ? from.at(batch, row, block) : nullptr;
        std::uint8_t* target = to.at(batch, row, block);
        std::uint8_t bytes[block_bytes];  // read whole, so that no store can be in the way
        for (int i = 0; i < block_bytes; ++i) bytes[i] = inside ? source[i * from.byte] : 0;
        for (int i = 0; i < block_bytes; ++i) target[i * to.byte] = bytes[i];
      }
    });
  }
};

/// Items are groups of 32 rows of the output, the height of a tile of scales; what lies outside the
/// matrix is padding, written with 0. A thread moves 8 columns.
struct CopyScales {
  ScalesMap from, to;
  std::int64_t rows, cols, groups;
  struct Scratch {};

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const std::int64_t batch = item / groups;
    const std::int64_t first = item % groups * 32;
    const std::int64_t height = to.rows - first < 32 ? to.rows - first : 32;
    for_each(group, (to.cols + 7) / 8, [&](std::int64_t i) {
      const std::int64_t end = 8 * i + 8 < to.cols ? 8 * i + 8 : to.cols;
      for (std::int64_t row = first; row < first + height; ++row) {
        for (std::int64_t col = 8 * i; col < end; ++col) {
          const bool inside = row < rows && col < cols;
          *to.at(batch, row, col) = inside ? *from.at(batch, row, col) : std::uint8_t{0};
        }
      }
    });
  }
};

/// Items are groups of 256 rows.
struct CopySummaries {
  SummariesMap from, to;
  std::int64_t rows, groups;
  struct Scratch {};
  static constexpr std::int64_t height = 256;

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const std::int64_t batch = item / groups;
    const std::int64_t first = item % groups * height;
    for_each(group, rows - first < height ? rows - first : height,
             [&](std::int64_t i) { *to.at(batch, first + i) = *from.at(batch, first + i); });
  }
};

template <class ExecSpace>
void launch_copy_codes(const std::string& label, const ExecSpace& exec, std::int64_t batch,
                       std::int64_t rows, std::int64_t blocks, const CodesMap& from,
                       const CodesMap& to) {
  const std::int64_t groups = (to.rows + 15) / 16;
  launch(label, exec, batch * groups, copy_threads, CopyCodes{from, to, rows, blocks, groups});
}

template <class ExecSpace>
void launch_copy_scales(const std::string& label, const ExecSpace& exec, std::int64_t batch,
                        std::int64_t rows, std::int64_t cols, const ScalesMap& from,
                        const ScalesMap& to) {
  const std::int64_t groups = (to.rows + 31) / 32;
  launch(label, exec, batch * groups, copy_threads, CopyScales{from, to, rows, cols, groups});
}

template <class ExecSpace>
void launch_copy_summaries(const std::string& label, const ExecSpace& exec, std::int64_t batch,
                           std::int64_t rows, const SummariesMap& from, const SummariesMap& to) {
  const std::int64_t groups = (rows + CopySummaries::height - 1) / CopySummaries::height;
  launch(label, exec, batch * groups, copy_threads, CopySummaries{from, to, rows, groups});
}

}  // namespace KokkosMX::Impl

#endif
