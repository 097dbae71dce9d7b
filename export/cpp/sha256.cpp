#include "sha256.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <vector>

namespace {

using State = std::array<uint32_t, 8>;

// The first 32 bits of the fraction of a root of the first primes: square roots begin the state, cube roots are the
// constants of the rounds.
template <size_t count>
std::array<uint32_t, count> fractions_of_roots(long double (*root)(long double)) {
    std::array<uint32_t, count> found{};
    size_t filled = 0;
    for (int number = 2; filled < count; ++number) {
        bool prime = true;
        for (int divisor = 2; divisor * divisor <= number; ++divisor) prime = prime && number % divisor != 0;
        if (!prime) continue;
        const long double value = root(number);
        found[filled++] = static_cast<uint32_t>((value - std::floor(value)) * 4294967296.0L);
    }
    return found;
}

uint32_t rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

void absorb(State& state, const uint8_t* block) {
    static const auto constants = fractions_of_roots<64>([](long double x) { return std::cbrt(x); });
    std::array<uint32_t, 64> words{};
    for (int i = 0; i < 16; ++i)
        words[i] = uint32_t(block[4 * i]) << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
        const uint32_t a = words[i - 15], b = words[i - 2];
        words[i] = words[i - 16] + words[i - 7] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3) +
                   (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (int i = 0; i < 64; ++i) {
        const uint32_t first = h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + words[i];
        const uint32_t second = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const State added{a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state[i] += added[i];
}

}  // namespace

std::string sha256_of(const std::filesystem::path& path) {
    std::ifstream stream(path, std::ios::binary);
    State state = fractions_of_roots<8>([](long double x) { return std::sqrt(x); });
    std::vector<uint8_t> buffer(1 << 20);
    uint64_t total = 0;
    while (stream) {
        stream.read(reinterpret_cast<char*>(buffer.data()), static_cast<std::streamsize>(buffer.size()));
        const size_t count = static_cast<size_t>(stream.gcount());
        total += count;
        if (count < buffer.size()) {  // the last piece: a one, zeros, and the length in bits
            buffer.resize((count + 9 + 63) / 64 * 64);
            std::fill(buffer.begin() + static_cast<std::ptrdiff_t>(count), buffer.end(), uint8_t(0));
            buffer[count] = 0x80;
            for (int i = 0; i < 8; ++i) buffer[buffer.size() - 1 - i] = static_cast<uint8_t>(8 * total >> 8 * i);
        }
        for (size_t at = 0; at < buffer.size(); at += 64) absorb(state, &buffer[at]);
    }
    if (!stream.eof() || stream.bad()) throw std::runtime_error(path.string() + " cannot be read");
    std::string digits;
    for (uint32_t word : state) {
        char text[9];
        std::snprintf(text, sizeof text, "%08x", word);
        digits += text;
    }
    return digits;
}
