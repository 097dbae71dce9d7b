// SHA-256 of a file (FIPS 180-4).
#pragma once

#include <filesystem>
#include <string>

// 64 hexadecimal digits. Throws std::runtime_error if the file cannot be read.
std::string sha256_of(const std::filesystem::path& path);
