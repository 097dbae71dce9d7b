// Decode an image and prepare it for a model, with the same pixels as the Python programs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Image {
    int width = 0;
    int height = 0;
    std::vector<uint8_t> pixels;  // rows of RGB
};

struct Preprocessing {
    int image_size = 224;
    double crop_pct = 0.875;
    bool bicubic = true;
    std::vector<float> mean, std;
};

// Read a JPEG or a binary PPM (P6). Throws std::runtime_error that names the file.
Image load_image(const std::string& path);

// float [3 * s * s], channel by channel: short side to s / crop_pct and centre crop in one resize, then normalise.
std::vector<float> preprocess(const Image& image, const Preprocessing& facts);
