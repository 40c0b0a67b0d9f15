# GTest::gtest_main, from the first place that has it: the system; the distribution's source
# package, fetched without root into the build folder; upstream's release.
find_package(GTest QUIET)
if(GTest_FOUND)
  message(STATUS "GoogleTest: the system's ${GTest_VERSION}")
  return()
endif()

set(CMAKE_POLICY_VERSION_MINIMUM 3.21)  # older releases of it ask for less than CMake 4 takes
set(INSTALL_GTEST OFF CACHE INTERNAL "")
set(BUILD_GMOCK OFF CACHE INTERNAL "")
set(unpacked ${CMAKE_SOURCE_DIR}/build/googletest)  # shared by the presets
set(debian ${unpacked}/usr/src/googletest)
set(upstream https://github.com/google/googletest/archive/refs/tags/v1.17.0.tar.gz)
set(upstream_sha256 65fab701d9829d38cb77c14acdc431d2108bfdbf8979e40eb8ae567edf10b27c)

find_program(APT_GET apt-get)
if(NOT EXISTS ${debian}/CMakeLists.txt AND APT_GET)
  message(STATUS "GoogleTest: fetching the distribution's source package")
  execute_process(COMMAND sh ${CMAKE_CURRENT_LIST_DIR}/googletest_from_apt.sh ${unpacked}
                  OUTPUT_QUIET ERROR_QUIET)
endif()
if(EXISTS ${debian}/CMakeLists.txt)
  message(STATUS "GoogleTest: the distribution's source, in ${debian}")
  add_subdirectory(${debian} googletest EXCLUDE_FROM_ALL)
  return()
endif()

set(archive ${unpacked}/googletest.tar.gz)
if(NOT EXISTS ${unpacked}/googletest-1.17.0)
  message(STATUS "GoogleTest: fetching ${upstream}")
  file(DOWNLOAD ${upstream} ${archive} INACTIVITY_TIMEOUT 30 STATUS status)
  file(SHA256 ${archive} sha256)
  if(NOT sha256 STREQUAL upstream_sha256)
    file(REMOVE ${archive})
    message(FATAL_ERROR "GoogleTest is neither installed nor could it be fetched: install it "
                        "(Debian and Ubuntu: apt-get install libgtest-dev; Fedora: dnf install "
                        "gtest-devel; macOS: brew install googletest) and run make again.")
  endif()
  file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${unpacked})
endif()
add_subdirectory(${unpacked}/googletest-1.17.0 googletest EXCLUDE_FROM_ALL)
