// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_UNIT_TESTS_GFX950_RUNTIME_HPP
#define KOKKOSMX_UNIT_TESTS_GFX950_RUNTIME_HPP

/// \file Runtime.hpp
/// What the tests ask of the stand-in for HIP's runtime (Runtime.cpp), besides HIP's own calls.

#include <string>
#include <vector>

namespace KokkosMXTest {

/// The kernels that were launched since the last call of this, by their mangled names, in order.
std::vector<std::string> take_launched_kernels();

/// All kernels in this program, by their mangled names.
std::vector<std::string> all_kernels();

/// A kernel's name as people read it: GemmKernel<...>, for kernels of the library.
std::string readable(const std::string& mangled);

/// What device memory is full of before anybody writes it.
inline constexpr unsigned char unwritten_byte = 0xCD;

/// The device has so many compute units from now on; 256 at first, as MI355X. The library chooses
/// its tiles by them.
void set_compute_units(int units);

}  // namespace KokkosMXTest

#endif
