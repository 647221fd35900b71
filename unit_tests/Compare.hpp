// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_TEST_COMPARE_HPP
#define KOKKOSMX_TEST_COMPARE_HPP

/// \file Compare.hpp
/// Comparisons of all bits that say how many differ and where, and of exceptions' messages.

#include <gtest/gtest.h>

#include <KokkosMX/Types.hpp>

#include <cstddef>
#include <cstdint>
#include <iomanip>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace KokkosMXTest {

inline std::string print(const KokkosMX::RowSummary& s) {
  std::ostringstream out;
  out << "{n " << s.n << ", lo " << int{s.lo} << ", hi " << int{s.hi} << ", has_nan "
      << int{s.has_nan} << "}";
  return out.str();
}
template <class Bits>
std::string print(const Bits& bits) {
  std::ostringstream out;
  out << "0x" << std::hex << std::setw(2 * sizeof(Bits)) << std::setfill('0')
      << std::uint64_t{bits};
  return out.str();
}

inline bool same(const KokkosMX::RowSummary& a, const KokkosMX::RowSummary& b) {
  return a.n == b.n && a.lo == b.lo && a.hi == b.hi && a.has_nan == b.has_nan;
}
template <class Bits>
bool same(const Bits& a, const Bits& b) {
  return a == b;
}

/// Equal in all bits, or how many differ and the first that does.
template <class Bits>
testing::AssertionResult same_bits(const std::vector<Bits>& got, const std::vector<Bits>& expected,
                                   const std::string& what) {
  if (got.size() != expected.size()) {
    return testing::AssertionFailure()
           << what << ": " << got.size() << " elements, expected " << expected.size();
  }
  std::size_t differ = 0, first = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (same(got[i], expected[i])) continue;
    if (differ++ == 0) first = i;
  }
  if (differ == 0) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << what << ": " << differ << " of " << got.size() << " differ, the first at " << first
         << ": " << print(got[first]) << ", expected " << print(expected[first]);
}

/// Extents as messages print them: (1, 5, 96).
inline std::string extents(const std::vector<std::int64_t>& list) {
  std::ostringstream out;
  for (std::size_t i = 0; i < list.size(); ++i) out << (i == 0 ? "(" : ", ") << list[i];
  out << ")";
  return out.str();
}

/// call() throws an Exception whose message holds every one of these parts.
template <class Exception, class Call>
testing::AssertionResult throws_saying(const Call& call, const std::vector<std::string>& parts) {
  try {
    call();
  } catch (const Exception& exception) {
    const std::string message = exception.what();
    for (const std::string& part : parts) {
      if (message.find(part) == std::string::npos) {
        return testing::AssertionFailure()
               << "the message lacks \"" << part << "\"; it is: " << message;
      }
    }
    return testing::AssertionSuccess();
  } catch (const std::exception& exception) {
    return testing::AssertionFailure() << "another kind of exception: " << exception.what();
  }
  return testing::AssertionFailure() << "nothing is thrown";
}

/// The same for std::invalid_argument.
template <class Call>
testing::AssertionResult refused(const Call& call, const std::vector<std::string>& parts) {
  return throws_saying<std::invalid_argument>(call, parts);
}

}  // namespace KokkosMXTest

#endif
