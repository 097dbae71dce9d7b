// The resize is Pillow's: an antialiased filter of two passes with 8-bit rounding between them, so that pixels agree.
#include "images.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>

#include <jpeglib.h>

namespace {

constexpr uint64_t kMaxPixels = 128'000'000;
constexpr int kBits = 22;  // fractional bits of a filter weight; with 8 of the sample and a sign it fits 32

struct JpegErrors {
    jpeg_error_mgr manager;
    std::jmp_buf escape;
    char message[JMSG_LENGTH_MAX];
};

void on_error(j_common_ptr info) {
    auto* errors = reinterpret_cast<JpegErrors*>(info->err);
    info->err->format_message(info, errors->message);
    std::longjmp(errors->escape, 1);
}

// The orientation tag of an EXIF block, 1 where there is none.
int orientation_of(const jpeg_decompress_struct& info) {
    for (auto marker = info.marker_list; marker; marker = marker->next) {
        const uint8_t* data = marker->data;
        const size_t size = marker->data_length;
        if (marker->marker != JPEG_APP0 + 1 || size < 20 || std::memcmp(data, "Exif\0\0", 6) != 0) continue;
        const uint8_t* tiff = data + 6;
        const size_t length = size - 6;
        const bool little = tiff[0] == 'I';
        auto number = [&](size_t at, int bytes) -> uint32_t {
            uint32_t value = 0;
            for (int i = 0; i < bytes; ++i) value |= uint32_t(tiff[at + i]) << 8 * (little ? i : bytes - 1 - i);
            return value;
        };
        const size_t directory = number(4, 4);
        if (directory + 2 > length) continue;
        const uint32_t entries = number(directory, 2);
        for (uint32_t i = 0; i < entries && directory + 2 + 12 * (i + 1) <= length; ++i) {
            const size_t entry = directory + 2 + 12 * i;
            if (number(entry, 2) == 0x0112) return static_cast<int>(number(entry + 8, 2));
        }
    }
    return 1;
}

// Turn the picture upright, as its EXIF orientation (1 to 8) says.
Image upright(const Image& image, int orientation) {
    if (orientation < 2 || orientation > 8) return image;
    const bool swapped = orientation >= 5;
    Image turned{swapped ? image.height : image.width, swapped ? image.width : image.height, {}};
    turned.pixels.resize(image.pixels.size());
    for (int y = 0; y < turned.height; ++y)
        for (int x = 0; x < turned.width; ++x) {
            int u = swapped ? y : x, v = swapped ? x : y;
            if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) u = image.width - 1 - u;
            if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) v = image.height - 1 - v;
            std::copy_n(&image.pixels[3 * (size_t(v) * image.width + u)], 3, &turned.pixels[3 * (size_t(y) * turned.width + x)]);
        }
    return turned;
}

void on_message(j_common_ptr) {}  // warnings are counted, not printed

Image load_jpeg(std::FILE* file, const std::string& path) {
    jpeg_decompress_struct info;
    JpegErrors errors;
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = on_error;
    errors.manager.output_message = on_message;
    Image image;
    int orientation = 1;
    if (setjmp(errors.escape)) {
        jpeg_destroy_decompress(&info);
        throw std::runtime_error("image " + path + ": " + errors.message);
    }
    jpeg_create_decompress(&info);
    jpeg_stdio_src(&info, file);
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&info, TRUE);
    orientation = orientation_of(info);
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    if (uint64_t(info.output_width) * info.output_height > kMaxPixels) {
        jpeg_destroy_decompress(&info);
        throw std::runtime_error("image " + path + ": is too large");
    }
    image.width = static_cast<int>(info.output_width);
    image.height = static_cast<int>(info.output_height);
    image.pixels.resize(size_t(3) * image.width * image.height);
    while (info.output_scanline < info.output_height) {
        uint8_t* row = &image.pixels[size_t(3) * image.width * info.output_scanline];
        jpeg_read_scanlines(&info, &row, 1);
    }
    const bool whole = info.err->num_warnings == 0;
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    if (!whole) throw std::runtime_error("image " + path + ": is damaged or cut short");
    return upright(image, orientation);
}

Image load_ppm(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    std::string magic;
    int width = 0, height = 0, largest = 0;
    stream >> magic >> width >> height >> largest;
    if (!stream || magic != "P6" || largest != 255 || width < 1 || height < 1 || uint64_t(width) * height > kMaxPixels)
        throw std::runtime_error("image " + path + ": is neither a JPEG nor a binary 8-bit PPM");
    stream.get();
    Image image{width, height, std::vector<uint8_t>(size_t(3) * width * height)};
    stream.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
    if (!stream) throw std::runtime_error("image " + path + ": is cut short");
    return image;
}

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? a * (((x - 5) * x + 8) * x - 4) : 0;
}

double bilinear(double x) { return std::max(0.0, 1 - std::abs(x)); }

struct Taps {
    int first;
    std::vector<int32_t> weights;
};

// For each output sample, which inputs it reads and with what weight; the inputs from `begin` to `end` are stretched.
// Single precision of the two is Pillow's.
std::vector<Taps> filter(int inputs, float begin, float end, int outputs, bool cubic) {
    const double scale = double(end - begin) / outputs, stretch = std::max(scale, 1.0);
    const double support = (cubic ? 2.0 : 1.0) * stretch;
    std::vector<Taps> taps;
    for (int i = 0; i < outputs; ++i) {
        const double centre = begin + (i + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(centre - support + 0.5));
        const int last = std::min(inputs, static_cast<int>(centre + support + 0.5));
        std::vector<double> weights;
        double sum = 0;
        for (int x = first; x < last; ++x) {
            const double offset = (x - centre + 0.5) / stretch;
            weights.push_back(cubic ? bicubic(offset) : bilinear(offset));
            sum += weights.back();
        }
        Taps row{first, {}};
        for (double weight : weights) row.weights.push_back(static_cast<int32_t>(std::lround(weight / sum * (1 << kBits))));
        taps.push_back(std::move(row));
    }
    return taps;
}

uint8_t weigh(const Taps& taps, const uint8_t* samples, size_t stride) {
    int64_t sum = int64_t(1) << (kBits - 1);
    for (size_t k = 0; k < taps.weights.size(); ++k) sum += int64_t(taps.weights[k]) * samples[k * stride];
    return static_cast<uint8_t>(std::clamp<int64_t>(sum >> kBits, 0, 255));
}

// Python's round: halves to the even neighbour.
double round_even(double x) { return std::nearbyint(x); }

}  // namespace

Image load_image(const std::string& path) {
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) throw std::runtime_error("image " + path + ": cannot be opened");
    std::array<uint8_t, 2> magic{};
    if (std::fread(magic.data(), 1, 2, file.get()) != 2) throw std::runtime_error("image " + path + ": the file is empty");
    std::rewind(file.get());
    return magic[0] == 0xFF && magic[1] == 0xD8 ? load_jpeg(file.get(), path) : load_ppm(path);
}

std::vector<float> preprocess(const Image& image, const Preprocessing& facts) {
    const int size = facts.image_size;
    const double width = image.width, height = image.height, least = std::min(width, height);
    const int shorter = static_cast<int>(round_even(size / facts.crop_pct));
    const double wide = std::max(shorter, static_cast<int>(shorter * width / least));
    const double high = std::max(shorter, static_cast<int>(shorter * height / least));
    const double left = round_even((wide - size) / 2) * width / wide, top = round_even((high - size) / 2) * height / high;
    const double right = std::min(width, left + size * width / wide), bottom = std::min(height, top + size * height / high);
    const auto columns = filter(image.width, float(left), float(right), size, facts.bicubic);
    const auto rows = filter(image.height, float(top), float(bottom), size, facts.bicubic);

    std::vector<uint8_t> narrow(size_t(3) * size * image.height);  // every row resized, before columns are
    for (int y = 0; y < image.height; ++y)
        for (int x = 0; x < size; ++x)
            for (int c = 0; c < 3; ++c)
                narrow[3 * (size_t(y) * size + x) + c] =
                    weigh(columns[x], &image.pixels[3 * (size_t(y) * image.width + columns[x].first) + c], 3);

    std::vector<float> tensor(size_t(3) * size * size);
    for (int y = 0; y < size; ++y)
        for (int x = 0; x < size; ++x)
            for (int c = 0; c < 3; ++c) {
                const auto pixel = weigh(rows[y], &narrow[3 * (size_t(rows[y].first) * size + x) + c], size_t(3) * size);
                tensor[(size_t(c) * size + y) * size + x] = (pixel / 255.0f - facts.mean[c]) / facts.std[c];
            }
    return tensor;
}
